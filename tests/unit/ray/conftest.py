"""One cluster for all tests of the folder."""

from tests.fixtures.ray_cluster import cluster

__all__ = ["cluster"]
