"""The probes that an engine is started with, and the sites that they make it read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.probe_list import parse_probes
from activation_logging.settings import Settings, named, resolve_sites
from activation_logging.vllm_plugin.served_model import depth_of, name_of

if TYPE_CHECKING:
    from vllm.config import ModelConfig

    from activation_logging.sites import Site


def load_probes(text: str, model: ModelConfig) -> ServedProbes:
    """The probes of a list, which must have been fitted on this model.

    Raises:
        ProbeError: one is broken, of another model, or cannot be served; the text names it.
        SettingsError: it is no list.
    """
    served = ServedProbes.load(parse_probes(text))
    served.check_model(name_of(model), depth_of(model))
    return served


def sites_to_read(settings: Settings, model: ModelConfig) -> tuple[Site, ...]:
    """The sites that are logged, and those that probes read, ascending by code.

    Raises:
        SettingsError: names the variable, and the layer that the model has not, or the probe that
            it cannot be served with.
    """
    with named(settings.sites_variable):
        logged = resolve_sites(settings, depth_of(model))
    with named("ACTIVATION_PROBES"):
        scored = load_probes(settings.probes, model).sites
    return tuple(sorted({*logged, *scored}, key=lambda site: site.code))
