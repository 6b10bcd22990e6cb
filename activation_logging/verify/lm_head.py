"""A model's output head by itself: from a row of the last layer to the rank of a token.

Only the one tensor is read from the model's safetensors files: neither torch nor transformers is
needed, and nothing of the model is run.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from activation_logging.errors import ExtraMissing, SettingsError
from activation_logging.locations import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

_TYPES = ("F32", "F16", "BF16")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "word_embeddings.weight"),
    *("tok_embeddings.weight", "embed_in.weight"),
)
_VOCABULARY_BLOCK = 16_384

ROUNDING = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Two logits closer than this, relative to the greater, may change places by rounding.

For the half-precision types it is twice half a unit in the last place, the most by which
rounding can bring two values together; for float32 it covers the order of summation.
"""


class Scores(NamedTuple):
    """How a head ranks given tokens: arrays ``[n]`` of logit, greatest logit, and rank."""

    logits: npt.NDArray[np.float32]
    best: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LMHead:
    """``weight`` is ``[vocabulary, hidden]`` of the stored type, ``bias`` ``[vocabulary]``."""

    weight: npt.NDArray[Any]
    bias: npt.NDArray[np.float32]

    @property
    def dtype(self) -> str:
        """The stored type: ``float32``, ``float16`` or ``bfloat16``."""
        return self.weight.dtype.name

    @property
    def hidden_size(self) -> int:
        """Number of elements of the rows that it takes."""
        return int(self.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of tokens that it knows."""
        return int(self.weight.shape[0])

    def score(self, rows: npt.NDArray[Any], tokens: Sequence[int]) -> Scores:
        """Logit and rank (0 is the greatest) of one token per row, in float32.

        Args:
            rows: states after the final norm, ``[n, hidden]``.
            tokens: ``n`` token ids of the vocabulary.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        states = np.asarray(rows, dtype=np.float32)
        logits = np.einsum("nh,nh->n", states, self.weight[ids].astype(np.float32))
        logits += self.bias[ids]
        best = np.full(len(ids), -np.inf, np.float32)
        ranks = np.zeros(len(ids), np.int64)
        for start in range(0, self.vocabulary, _VOCABULARY_BLOCK):
            part = slice(start, start + _VOCABULARY_BLOCK)
            block = states @ self.weight[part].astype(np.float32).T + self.bias[part]
            inside = np.flatnonzero((ids >= start) & (ids < start + block.shape[1]))
            # The token's own logit, summed in another order, must not outrank itself.
            block[inside, ids[inside] - start] = logits[inside]
            np.maximum(best, block.max(axis=1), out=best)
            ranks += (block > logits[:, None]).sum(axis=1)
        return Scores(logits, best, ranks)


def load_lm_head(model: str | Path) -> LMHead:
    """The output head of a model folder, or of a model of the Hugging Face hub by name.

    Where the model ties it to the input embeddings, those are taken.

    Raises:
        SettingsError: there are no safetensors files, or there is no head in them.
        ExtraMissing: the model is a name, and ``huggingface_hub`` is not installed.
    """
    folder = model_folder(model)
    file = folder / "config.json"
    config = _read_json(file)
    text_config = {**config, **_object(config.get("text_config") or {}, file, "text_config")}
    tensors = _find_tensors(folder)
    tied = text_config.get("tie_word_embeddings")
    wanted = _EMBEDDINGS + _HEADS if tied else _HEADS + (() if tied is False else _EMBEDDINGS)
    name = next((n for end in wanted for n in tensors if f".{n}".endswith(f".{end}")), None)
    if name is None:
        raise SettingsError(f"{model}: none of its safetensors files holds an output head")
    weight = _read_tensor(tensors[name], name)
    # Some models pad the vocabulary; the padding is never answered.
    known = min(len(weight), text_config.get("vocab_size") or len(weight))
    bias = np.zeros(known, np.float32)
    bias_name = name.removesuffix("weight") + "bias"
    if bias_name in tensors:
        bias = _read_tensor(tensors[bias_name], bias_name)[:known].astype(np.float32)
    return LMHead(weight[:known], bias)


def model_folder(model: str | Path, *, more: Sequence[str] = ()) -> Path:
    """A model's folder here: the one given, or what the Hugging Face hub has under the name.

    Args:
        model: a folder, or a name on the hub.
        more: patterns of files to download besides the weights and the JSON files.

    Raises:
        SettingsError: it is neither.
        ExtraMissing: it is no folder, and ``huggingface_hub`` is not installed.
    """
    folder = expanded(model)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise ExtraMissing(
            f"{model} is not a folder here, and looking it up on the Hugging Face hub needs "
            "huggingface_hub: pip install huggingface_hub, or give the model's folder"
        ) from None
    try:
        return Path(
            snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json", *more])
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        brief = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"{model} is neither a model folder nor a model that the Hugging Face hub has: {brief}"
        ) from None


def _find_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weights = _object(_read_json(index).get("weight_map"), index, "weight_map")
        return {name: folder / str(file) for name, file in weights.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SettingsError(
            f"{folder} holds no safetensors files; give the folder of a model that was saved so"
        )
    found: dict[str, Path] = {}
    for file in files:
        with _open(file) as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _read_tensor(file: Path, name: str) -> npt.NDArray[Any]:
    """One tensor, of the type that it is stored in; no other is read."""
    with _open(file) as opened:
        kind = opened.get_slice(name).get_dtype()
        if kind not in _TYPES:
            raise SettingsError(
                f"{file}: {name} is stored as {kind}, and only {', '.join(_TYPES)} can be read; "
                "give the folder of the model before it was quantized"
            )
        tensor: npt.NDArray[Any] = opened.get_tensor(name)
        return tensor


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{file} is not a readable safetensors file: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file.parent} is not a model folder: {file.name}: {error}") from None
    return _object(value, file, "it")


def _object(value: Any, file: Path, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(
            f"{file.parent} is not a model folder: {file.name}: {name} is not a JSON object"
        )
    return value
