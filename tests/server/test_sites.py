"""Every site of a layer, captured inside the model's graph, against hooks on transformers.

Other architectures are in ``test_models.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from activation_logging.large_model import MODEL as LARGE
from activation_logging.sites import Site
from tests.fixtures.architectures import make
from tests.fixtures.offline import ask, usual
from tests.server.reference import (
    EVERYTHING,
    SiteReference,
    SiteTable,
    SiteTables,
    check_sites,
    load,
)


@pytest.fixture(scope="module")
def table(site_tables: SiteTables) -> SiteTable:
    return site_tables["sites"]


@pytest.mark.core
class TestSites:
    def test_of_the_default_model(self, tmp_path: Path, model_path: Path, table: SiteTable) -> None:
        sites = "resid@0;15;last,resid_prenorm,attn_out@1;15,heads@15;last,mlp_out@15"
        entries = ask(tmp_path / "s.lmdb", sites, usual(model_path, enforce_eager=True))
        *whole, part = entries
        worst = table["the default model"] = check_sites(whole, model_path)
        assert worst.keys() == {"resid", "resid_prenorm", "attn_out", "heads", "mlp_out"}
        assert whole[0].site("heads", 15).shape == (len(whole[0].positions), 9, 64)
        assert np.array_equal(whole[0].site("resid", 15), whole[0].layer(15))
        assert part.sites == (Site("attn_out", 1),)
        check_sites([part], model_path)

    @pytest.mark.compiled
    def test_in_a_compiled_graph(self, tmp_path: Path, table: SiteTable) -> None:
        """One graph without a break, as the program says."""
        model = make(tmp_path / "model", "Llama")
        entries = ask(tmp_path / "s.lmdb", EVERYTHING, usual(model))
        table["Llama, compiled"] = check_sites(entries, model)

    @pytest.mark.compiled
    def test_of_the_default_model_as_users_start_it(self, tmp_path: Path, model_path: Path) -> None:
        """In bfloat16, whose rounding two ways to the same rows do not share, and compiled."""
        engine = usual(model_path, dtype="bfloat16")
        errors = SiteReference(load(model_path)).errors(
            ask(tmp_path / "s.lmdb", EVERYTHING, engine)
        )
        assert len(errors) == 31 + 1 + 3 * 30
        middle = {site: float(np.median(found)) for site, found in errors.items()}
        assert max(middle.values()) < 0.1, middle
        # One layer's rows in another's place would not pass for them.
        assert np.median(list(middle.values())) < 0.03, middle

    @pytest.mark.skipif(
        not LARGE.folder.exists(), reason="activation-logging demo-model --large was not run"
    )
    def test_of_the_large_model(self, tmp_path: Path, table: SiteTable) -> None:
        """Eleven times as many weights: float32 rounds more often on the way."""
        engine = usual(LARGE.folder, enforce_eager=True)
        entries = ask(tmp_path / "s.lmdb", EVERYTHING, engine)
        worst = SiteReference(load(LARGE.folder)).worst(entries)
        table["Qwen2.5-Coder-1.5B-Instruct"] = worst
        assert max(worst.values()) <= 1e-4, worst
