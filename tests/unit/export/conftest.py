"""The S3 server, for the modules that export to one."""

from tests.fixtures.s3 import s3

__all__ = ["s3"]
