"""The whole study of a labelled store from Python: ``python examples/study.py STORE``.

Where in the network, and where in the answer, can a linear probe tell what was made up?
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from activation_logging import open_store
from activation_logging.detectors.probes import LinearProbe
from activation_logging.detectors.text import text_only

POSITIONS = ("prompt_last", "response_first", "response_last", "response_mean")


def auroc(model, X, y, groups) -> float:
    """Of a detector that has never seen what an answer is about."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, X, y, groups=groups, cv=folds, method="predict_proba")
    return float(roc_auc_score(y, scores[:, 1]))


def main(path: str) -> None:
    """Print AUROC by layer and position, and what the words alone tell."""
    with open_store(path) as store:
        layers = next(store.entries()).layers
        print("layer " + "".join(f"{position:>16}" for position in POSITIONS))
        for layer in layers:
            print(f"{layer:5} ", end="")
            for position in POSITIONS:
                data = store.dataset(layer=layer, position=position)
                print(f"{auroc(LinearProbe(), data.X, data.y, data.groups):16.3f}", end="")
            print(flush=True)
        entries = (store[key] for key in data.keys)
        words = np.array([[entry.prompt, entry.response] for entry in entries], dtype=object)
        print(f"words alone: {auroc(text_only(), words, data.y, data.groups):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
