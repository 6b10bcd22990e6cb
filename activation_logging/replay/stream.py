"""Quantities of what a layer does to the residual stream."""

from __future__ import annotations

from typing import Any

from activation_logging.replay.registry import Answer, LayerPass, Quantity

MOST_ATTENDED = 20
"""How many positions an ICR score compares, as in the authors' example."""

_AT_ONCE = 64
"""Rows for which the logits of the whole vocabulary are in memory at a time."""


def icr(layer: LayerPass, answer: Answer) -> Any:
    """Whether a layer writes what its attention reads, ``[R]`` in nats, 0 to ln 2.

    For each row: the Jensen-Shannon divergence between the attention, averaged over the heads, and
    the softmax of the projections of the layer's update on the directions of the states that it
    read, over the positions that are attended the most (Zhang et al. 2025, arXiv:2507.16488). 0
    says that the update follows the attention, more that it comes from elsewhere.
    """
    import torch

    states = layer.before.float()
    directions = states / states.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    update = (layer.after.float() - states)[answer.rows]
    attended = layer.attention[:, answer.rows].mean(0, dtype=torch.float32)
    weights, at = attended.topk(min(MOST_ATTENDED, attended.shape[1]))
    rows = torch.arange(answer.rows.start, answer.rows.stop, device=at.device)
    ahead = at > rows[:, None]
    projections = (update @ directions.T).gather(1, at).masked_fill(ahead, -torch.inf)
    weights = weights.masked_fill(ahead, 0.0)
    return _divergence(projections.softmax(-1), weights / weights.sum(-1, keepdim=True))


def _divergence(p: Any, q: Any) -> Any:
    """Jensen-Shannon divergence of each row of two distributions, in nats."""
    import torch

    middle = (p + q) / 2
    both = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return (both.sum(-1) / 2).clamp(min=0)


def logit_lens(layer: LayerPass, answer: Answer) -> Any:
    """What a layer would answer, ``[R, 2]``: entropy, and the chosen token's log-probability.

    Both in nats, of the distribution that the final norm and the output head make of the residual
    stream after the layer (nostalgebraist 2020, "interpreting GPT: the logit lens").
    """
    import torch

    found = []
    states = layer.after[answer.rows]
    for start in range(0, answer.num_response, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        log_probs = layer.log_probs(states[part])
        entropy = torch.special.entr(log_probs.exp()).sum(-1)  # a masked logit is no outcome
        chosen = log_probs.gather(1, answer.chosen[part, None])[:, 0]
        found.append(torch.stack([entropy, chosen], dim=1))
    return torch.cat(found)


ICR = Quantity(
    "icr",
    "ICR scores",
    "Zhang et al. 2025, arXiv:2507.16488",
    "attention",
    icr,
    axis=1,
    shape="[R, L]",
    settings={"most_attended": MOST_ATTENDED},
)
LOGIT_LENS = Quantity(
    "logit_lens",
    "Logit lens: entropy, and the chosen token's log-probability",
    "nostalgebraist 2020, the logit lens",
    "head",
    logit_lens,
    axis=1,
    shape="[R, L, 2]",
)
