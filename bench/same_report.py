"""One report from four places: two stores read as one, what they merge into, and its exports.

    python -m bench.same_report STORE [--label NAME] [--layers 16] [--docs NAME]

The answers of a labelled store are dealt in turn into two stores, as two servers would write them.
Then the report of a label is made of both as one, of the store that they merge into, of an export
of both on an S3 server that runs here (moto's), and of an export in a folder. Two reports are equal
if nothing differs but when they were made, what the store was called, the names of stores before
keys, and why entries were left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from activation_logging.export import export_store
from activation_logging.report import build_report
from activation_logging.store import open_store
from activation_logging.store.merge import merge
from bench.docs import add_flag, interval_text, record, terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

_STORE_NAME = re.compile(r"[\w.+~@=-]+:(?=[0-9a-f]{64})")
_BUCKET = "activations"


def deal(source: Path, folder: Path, label: str) -> list[Path]:
    """Two stores, with every other answer that has the label each."""
    halves = [folder / "a.lmdb", folder / "b.lmdb"]
    with open_store(source) as store:
        labelled = [entry.key for entry in store.entries() if label in entry.evaluations]
    for number, half in enumerate(halves):
        shutil.copytree(source, half)
        wanted = set(labelled[number::2])
        with open_store(half, writable=True) as store:
            for key in [key for key in store if key not in wanted]:
                store.delete(key)
    return halves


@contextmanager
def object_storage() -> Iterator[str]:
    """An S3 server with an empty bucket; the environment names it."""
    from moto.server import ThreadedMotoServer  # type: ignore[import-untyped]

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "example",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import s3fs  # type: ignore[import-untyped]

    s3fs.S3FileSystem().mkdir(_BUCKET)
    try:
        yield f"s3://{_BUCKET}"
    finally:
        server.stop()


def comparable(document: dict[str, Any]) -> Any:
    """What two reports of the same answers have the same."""
    kept = {name: part for name, part in document.items() if name != "created"}
    kept["data"] = {n: v for n, v in document["data"].items() if n not in {"store", "left_out"}}
    return json.loads(_STORE_NAME.sub("", json.dumps(kept)))


def main() -> None:
    """Deal, merge, export, report, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--label", default="short_facts")
    parser.add_argument("--layers", default="16")
    add_flag(parser)
    args = parser.parse_args()
    table = Table("read from", "answers", "seconds", "AUROC of the linear probe", "equal")
    with tempfile.TemporaryDirectory(prefix="same-") as base, object_storage() as bucket:
        folder = Path(base)
        halves = deal(args.store, folder, args.label)
        merge(halves, folder / "merged")
        export_store(halves, f"{bucket}/both")
        export_store(halves, folder / "export")
        first = None
        for name, where in {
            "two stores, as one": halves,
            "the store that they merge into": folder / "merged",
            "their export on S3": f"{bucket}/both",
            "their export in a folder": folder / "export",
        }.items():
            start = time.perf_counter()
            made = build_report(
                where,
                folder / "report",
                label=args.label,
                layers=[int(layer) for layer in args.layers.split(",")],
                draws=200,
            )
            seconds = time.perf_counter() - start
            document = comparable(made.document)
            first = first or document
            probe = next(row for row in document["detectors"] if row["name"] == "linear_probe")
            equal = "yes" if document == first else f"no: {', '.join(differing(document, first))}"
            answers = str(document["data"]["answers"])
            cells = [answers, f"{seconds:.0f}", interval_text(probe["auroc"]), equal]
            terminal.print(name, *cells)
            table.add_row(name, *cells)
    terminal.print(table)
    record(args.docs, table)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts of two documents that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


if __name__ == "__main__":
    main()
