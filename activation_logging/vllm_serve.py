"""``python -m activation_logging.vllm_serve``: ``vllm serve`` with flags for logging.

It handles the flags below and passes all others to ``vllm serve`` unchanged.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from activation_logging.errors import ActivationLoggingError
from activation_logging.printable import lines
from activation_logging.settings import Settings
from activation_logging.vllm_plugin import gate

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS = {
    "--lmdb_path": (
        "ACTIVATION_LMDB_PATH",
        (
            "folder of the store; {host} and {engine} in it make one of each host and engine "
            "(default: lmdb_data/activations.lmdb)"
        ),
    ),
    "--activation-layers": (
        "ACTIVATION_LAYERS",
        "layers to log: last, all, or numbers and ranges such as 8,15-20,last (default: last)",
    ),
    "--activation-sites": (
        "ACTIVATION_SITES",
        "instead of layers: sites such as resid@8;last,attn_out@all,heads@12-16,resid_prenorm",
    ),
    "--activation-tokens": (
        "ACTIVATION_TOKENS",
        "tokens to log: all, response or prompt (default: all)",
    ),
    "--activation-dtype": (
        "ACTIVATION_DTYPE",
        "stored type: auto (the model's own), float32, float16 or bfloat16 (default: auto)",
    ),
    "--activation-keep": (
        "ACTIVATION_KEEP",
        (
            "which answers keep their rows: all, none, or a comma list of score:NAME>0.8, "
            "sample:0.01, tag:KEY=VALUE and finish:length, any of which is enough (default: all)"
        ),
    ),
    "--activation-max-size": (
        "ACTIVATION_MAX_SIZE",
        (
            "largest size of the store, such as 200GB: the oldest rows without a label make room "
            "for new ones (default: none)"
        ),
    ),
    "--activation-probe-folder": (
        "ACTIVATION_PROBE_FOLDER",
        "folder of probes that may be loaded while it runs, by POST /v1/activations/probes",
    ),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m activation_logging.vllm_serve",
        description="Serve a model with vLLM and log the activations of every request. "
        "All flags of `vllm serve` are accepted too (see `vllm serve --help=all`).",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    for flag, (variable, text) in _FLAGS.items():
        parser.add_argument(flag, dest=variable, metavar="VALUE", help=text)
    parser.add_argument(
        "--activation-probe",
        dest="probes",
        action="append",
        metavar="NAME=PATH",
        help="probe that scores every token while the model answers, as `report --save-probe` and "
        "`probe fit` write it; NAME=PATH:shadow for one whose scores are stored and not sent. May "
        "be given several times",
    )
    parser.add_argument(
        "--auth_token",
        "--auth-token",
        metavar="TOKEN",
        help="Hugging Face token for gated models; sets HF_TOKEN for this process. Other users of "
        "the machine can read the command line, so prefer to set HF_TOKEN yourself",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Set the environment that the plugin reads, then run ``vllm serve``."""
    parser = make_parser()
    ours, theirs = parser.parse_known_args(argv)
    if ours.help:
        parser.print_help()
        return 0
    for variable, _ in _FLAGS.values():
        value = getattr(ours, variable)
        if value is not None:
            os.environ[variable] = value
    if ours.probes:
        os.environ["ACTIVATION_PROBES"] = ",".join(ours.probes)
    if ours.auth_token:
        os.environ["HF_TOKEN"] = ours.auth_token
    try:
        Settings.from_env()
        gate.check_plugin_is_loaded()
        # Keep the token out of sys.argv: vLLM logs it and passes it on.
        sys.argv = ["vllm", "serve", *theirs]
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()
    except ActivationLoggingError as error:
        print(f"error: {lines(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
