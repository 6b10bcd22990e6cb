"""The one module here that imports torch: a map-style data set over a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from activation_logging.dataset.layers import Source
from activation_logging.errors import ExtraMissing
from activation_logging.store import Store, open_store

try:
    import torch
    from torch.utils.data import Dataset as TorchDataset
except ImportError as error:
    raise ExtraMissing("a torch data set needs torch; install it (pip install torch)") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from activation_logging.dataset import Dataset
    from activation_logging.store.places import Where


class StateDataset(TorchDataset):  # type: ignore[misc] # torch is Any to the type checker
    """``(state, class)`` pairs: a float32 tensor ``[width]`` and an int."""

    def __init__(self, dataset: Dataset) -> None:
        self.where: Where = dataset.examples.store.where
        self.keys = list(dataset.keys)
        self.classes = dataset.y.tolist()
        source = Source.of(dataset.layer, dataset.examples.num_layers)
        self.site = source.site
        self.columns = source.columns(dataset.examples.shapes[source.site])
        self.position = dataset.position
        self._store: Store | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        (pair,) = self.__getitems__([index])
        return pair

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """A batch at once, which a DataLoader asks for where it can."""
        if self._store is None:
            self._store = open_store(self.where)
        keys = [self.keys[index] for index in indices]
        states = self._store.read(keys, site=self.site, position=self.position)
        tensors = torch.from_numpy(states[:, self.columns]).float()
        return [(state, self.classes[index]) for state, index in zip(tensors, indices, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started afresh: each opens the store by itself."""
        return {**self.__dict__, "_store": None}
