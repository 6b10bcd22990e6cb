"""Quantities of the attention weights of a layer."""

from __future__ import annotations

from typing import Any

from activation_logging.replay.registry import Answer, LayerPass, Quantity

EIGENVALUES = 10
"""How many of each head's eigenvalues are kept; the paper tries 5 to 100."""


def lookback(layer: LayerPass, answer: Answer) -> Any:
    """How much each head looks at the prompt rather than at the answer so far, ``[R, H]``.

    The mean weight on a prompt token, divided by the sum of that and of the mean weight on a token
    of the answer that is there already (Chuang et al. 2024, arXiv:2407.07071, section 2). Nothing
    of the answer is there before its first token, whose ratio is therefore 1.
    """
    import torch

    looked = layer.attention[:, answer.rows].float()
    at_prompt = looked[..., : answer.num_prompt].mean(-1)
    steps = torch.arange(answer.num_response, device=looked.device).clamp(min=1)
    at_answer = looked[..., answer.num_prompt :].sum(-1) / steps
    return (at_prompt / (at_prompt + at_answer)).T


def lapeigvals(layer: LayerPass, answer: Answer) -> Any:
    """The greatest eigenvalues of each head's Laplacian, in falling order, ``[H, k]``.

    A head's attention is a graph between positions. Position ``i`` has as its degree the mean
    weight that it receives of those positions which can see it, itself included. The Laplacian is
    the degrees less the weights. It is lower triangular, since nothing looks ahead, so that its
    eigenvalues are its diagonal (Binkowski et al. 2025, arXiv:2502.17598, section 3). NaN fills up
    where there are fewer positions than eigenvalues.
    """
    del answer
    import torch

    attention = layer.attention
    positions = attention.shape[-1]
    readers = torch.arange(positions, 0, -1, device=attention.device)
    degree = attention.sum(1, dtype=torch.float32) / readers
    eigenvalues = degree - attention.diagonal(dim1=1, dim2=2).float()
    greatest = eigenvalues.topk(min(EIGENVALUES, positions)).values
    missing = EIGENVALUES - greatest.shape[1]
    return torch.nn.functional.pad(greatest, (0, missing), value=float("nan"))


LOOKBACK = Quantity(
    "lookback",
    "Lookback ratios",
    "Chuang et al. 2024, arXiv:2407.07071",
    "attention",
    lookback,
    axis=1,
    shape="[R, L, H]",
    dtype="float16",
)
LAPEIGVALS = Quantity(
    "lapeigvals",
    "Eigenvalues of the attention's Laplacian",
    "Binkowski et al. 2025, arXiv:2502.17598",
    "attention",
    lapeigvals,
    axis=0,
    shape=f"[L, H, {EIGENVALUES}]",
    settings={"eigenvalues": EIGENVALUES},
)
