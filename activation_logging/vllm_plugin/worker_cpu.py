"""The worker tap on the CPU, in its own module: vLLM's CPU worker must be imported first."""

import os
from collections.abc import Collection

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip

from activation_logging.vllm_plugin.worker import ActivationWorker


class CPUActivationWorker(ActivationWorker, CPUWorker):
    """vLLM's CPU worker, logging."""

    def _writer_cores(self) -> Collection[int]:
        # OpenMP has pinned this process to the model's cores before our code ran. A commit on these
        # cores would delay the current step. vLLM's engine, our parent process, is not pinned.
        return os.sched_getaffinity(os.getppid())
