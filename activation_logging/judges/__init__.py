"""Judges: what an answer amounts to, decided by rules, by a model, or by the right answer."""

from activation_logging.judges.verdict import Belief, Judgement

__all__ = ["Belief", "Judgement"]
