"""Detectors of the tokens of claims: fitted, compared with what needs no states, saved.

::

    from activation_logging.detectors.tokens import TokenOptions, run_token_study

    study = run_token_study(store, "wiki_profiles", TokenOptions(layers=[8, 16]))
    study.result("token_linear").levels["span"].auroc
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.lazy import lazy_names

if TYPE_CHECKING:
    from activation_logging.detectors.tokens.linear import TokenProbe
    from activation_logging.detectors.tokens.pooled import AttentionProbe, MultimaxProbe
    from activation_logging.detectors.tokens.results import TokenOptions, TokenStudy
    from activation_logging.detectors.tokens.saving import fit_token_probe
    from activation_logging.detectors.tokens.study import run_token_study

__all__ = [
    "AttentionProbe",
    "MultimaxProbe",
    "TokenOptions",
    "TokenProbe",
    "TokenStudy",
    "fit_token_probe",
    "run_token_study",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AttentionProbe": ".pooled",
        "MultimaxProbe": ".pooled",
        "TokenOptions": ".results",
        "TokenProbe": ".linear",
        "TokenStudy": ".results",
        "fit_token_probe": ".saving",
        "run_token_study": ".study",
    },
)
