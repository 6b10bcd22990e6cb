"""The plugin: the only part of the package that imports vllm.

vLLM calls :func:`register` in each of its processes, some of them more than once. The data
goes this way::

    gate          may this vLLM, in this mode, be logged?
    engine        marks the engine's configuration: our worker class, our front-end tap
    middleware    what only HTTP knows: messages, the answer's id; and options that are wrong
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
        SettingsError: an ``ACTIVATION_*`` variable makes no sense.
        UnsupportedEngineError: this version of vLLM cannot be logged.
    """
    # vLLM swallows errors while it imports a plugin, but not those raised in here.
    from activation_logging.errors import print_as_one_sentence
    from activation_logging.settings import Settings

    if Path(sys.argv[0]).name == "vllm":
        print_as_one_sentence()
    if Settings.from_env().enabled:
        from activation_logging.vllm_plugin import engine

        engine.install()
