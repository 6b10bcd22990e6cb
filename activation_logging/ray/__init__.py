"""Many machines: answers in bulk, and the sweeps of a study, on a Ray cluster.

::

    import ray
    from activation_logging.ray import generate

    questions = ray.data.read_json("s3://bucket/questions")     # a column "prompt" or "messages"
    answers = generate(questions, model="MODEL", path="/data/stores")
    answers.write_parquet("s3://bucket/answers")

On a command line these are ``activation-logging generate --ray`` and ``report --ray``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.extras import require
from activation_logging.lazy import lazy_names

if TYPE_CHECKING:
    from activation_logging.ray.bulk import BulkOutcome, answer_file
    from activation_logging.ray.cluster import connected
    from activation_logging.ray.dataset import generate
    from activation_logging.ray.sweep import fit_on_ray

require("ray", "ray")
del require

__all__ = ["BulkOutcome", "answer_file", "connected", "fit_on_ray", "generate"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BulkOutcome": ".bulk",
        "answer_file": ".bulk",
        "connected": ".cluster",
        "fit_on_ray": ".sweep",
        "generate": ".dataset",
    },
)
