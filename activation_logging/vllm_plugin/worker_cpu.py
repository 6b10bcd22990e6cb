"""The worker tap on the CPU; apart, because vLLM's CPU worker must be imported first."""

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip

from activation_logging.vllm_plugin.worker import ActivationWorker


class CPUActivationWorker(ActivationWorker, CPUWorker):
    """vLLM's CPU worker, logging."""
