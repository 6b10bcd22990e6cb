"""The plugin: the only part of the package that imports vllm.

vLLM calls :func:`register` in each of its processes, in some of them more than once. The data
flows through these modules::

    gate          checks that this vLLM, in this mode, can be logged
    engine        patches vLLM: our worker class, our front-end tap
    middleware    reads what only HTTP knows (messages, the answer's id), rejects bad options
    frontend      front-end tap: prompt, answer, tokens of every finished request  -> store
    worker        worker tap: hidden states of every step
      arena       ... kept beside the KV cache, slot by slot
      collector   ... gathered when their request ends                             -> store
"""

from __future__ import annotations

import sys
from pathlib import Path


def register() -> None:
    """Entry point of ``vllm.general_plugins``.

    Raises:
        SettingsError: an ``ACTIVATION_*`` variable has an invalid value.
        UnsupportedEngineError: this version of vLLM is not supported.
    """
    # vLLM swallows errors of a plugin's import, but not errors of this call. So import here.
    from activation_logging.errors import print_as_one_sentence
    from activation_logging.settings import Settings

    if Path(sys.argv[0]).name == "vllm":
        print_as_one_sentence()
    if Settings.from_env().enabled:
        from activation_logging.vllm_plugin import engine

        engine.install()
