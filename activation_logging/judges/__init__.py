"""Judges: what an answer amounts to, decided by rules, by a model, or by the right answer."""

from activation_logging.judges.registry import JUDGES, Judge
from activation_logging.judges.verdict import Answer, Belief, Verdict

__all__ = ["JUDGES", "Answer", "Belief", "Judge", "Verdict"]
