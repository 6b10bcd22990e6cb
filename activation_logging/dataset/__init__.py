"""From a labelled store to numpy arrays: ``open_store(path).dataset("short_facts")``.

Needs nothing but numpy; :meth:`Dataset.torch` needs torch.
"""

from __future__ import annotations

from activation_logging.dataset.dataset import Dataset, make_dataset
from activation_logging.dataset.examples import Examples, select_examples
from activation_logging.dataset.positions import NAMED_POSITIONS

__all__ = ["NAMED_POSITIONS", "Dataset", "Examples", "make_dataset", "select_examples"]
