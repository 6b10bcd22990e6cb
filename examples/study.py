"""The whole study of a labelled store from Python: ``python examples/study.py STORE``.

Where in the network, and where in the answer, can a linear probe tell what was made up?
"""

from __future__ import annotations

import sys

from activation_logging import open_store
from activation_logging.detectors import Options, run_study

POSITIONS = ("prompt_last", "response_first", "response_last", "response_mean")


def main(path: str) -> None:
    """Print AUROC by layer and position, and what the words alone tell."""
    with open_store(path) as store:
        study = run_study(store, options=Options(positions=POSITIONS))
    print("layer " + "".join(f"{position:>16}" for position in POSITIONS))
    for layer in study.examples.layers:
        cells = [study.cells[layer, position] for position in POSITIONS]
        print(f"{layer:5} " + "".join(f"{auroc.value:16.3f}" for auroc in cells))
    print(f"words alone: {study.result('text_only').auroc.value:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
