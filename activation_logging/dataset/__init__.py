"""From a labelled store to numpy arrays: one state per answer, or one per token of a claim.

``open_store(path).dataset("short_facts")`` has the answers,
``open_store(path).tokens("wiki_profiles", layer=15)`` the tokens of judged claims.

Needs nothing but numpy; :meth:`Dataset.torch` needs torch.
"""

from __future__ import annotations

from activation_logging.dataset.dataset import Dataset, make_dataset
from activation_logging.dataset.examples import Examples, select_examples
from activation_logging.dataset.positions import NAMED_POSITIONS
from activation_logging.dataset.tokens import Tokens, make_tokens

__all__ = [
    "NAMED_POSITIONS",
    "Dataset",
    "Examples",
    "Tokens",
    "make_dataset",
    "make_tokens",
    "select_examples",
]
