"""The one module here that imports torch: a map-style data set over a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.dataset.features import read_vector, where_there
from activation_logging.errors import DatasetError, ExtraMissing
from activation_logging.store import Store, open_store

try:
    import torch
    from torch.utils.data import Dataset as TorchDataset
except ImportError as error:
    raise ExtraMissing("a torch data set needs torch; install it (pip install torch)") from error

if TYPE_CHECKING:
    from pathlib import Path

    from activation_logging.dataset import Dataset


class StateDataset(TorchDataset):  # type: ignore[misc] # torch is Any to the type checker
    """``(state, class)`` pairs: a float32 tensor ``[hidden]`` and an int."""

    def __init__(self, dataset: Dataset) -> None:
        self.path: Path = dataset.examples.store.path
        self.keys = list(dataset.keys)
        self.classes = dataset.y.tolist()
        self.layer = dataset.layer
        self._rows = [cell for (cell,) in where_there(dataset.examples, [dataset.position])[0]]
        self._store: Store | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        rows = self._rows[index]
        if isinstance(rows, str):
            raise DatasetError(rows)
        if self._store is None:
            self._store = open_store(self.path)
        state = read_vector(self._store[self.keys[index]], self.layer, rows)
        return torch.from_numpy(state), self.classes[index]

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started afresh: each opens the store by itself."""
        return {**self.__dict__, "_store": None}
