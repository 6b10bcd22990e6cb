"""Answer a file of prompts with vLLM's offline engine, every answer logged; no server needed.

A run can be interrupted and started again. Each line of the file has an id made of its content,
and the request carries it as a tag. A line whose answer is already in the store is not asked again.
Lines may be added, removed or moved between two starts. :mod:`activation_logging.ray` does the same
on many machines.
"""

from activation_logging.generate.prompts import (
    LINE_TAG,
    RUN_TAG,
    PromptLine,
    make_line,
    read_prompts,
)
from activation_logging.generate.run import Outcome, answered_lines, generate, run_name

__all__ = [
    "LINE_TAG",
    "RUN_TAG",
    "Outcome",
    "PromptLine",
    "answered_lines",
    "generate",
    "make_line",
    "read_prompts",
    "run_name",
]
