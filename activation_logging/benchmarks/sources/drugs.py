"""Names of medicines, read from the package ``drug-named-entity-recognition``.

Its dictionary joins DrugBank, MeSH, MedlinePlus, the NHS and Wikipedia: 107,000 names and
variants of 20,000 substances, enzymes, allergens and plain chemicals among them.
"""

from __future__ import annotations

import bz2
import importlib.util
import pickle
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from activation_logging.errors import BenchmarkError
from activation_logging.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGE = "drug_named_entity_recognition"
_TWO_WORDS = re.compile(r"[a-z]{6,} [a-z]{4,}")
_ALLERGENS = range(10_300, 11_124)
"""DrugBank numbered its allergen extracts (pollen, moulds, foods) in one block."""
_NOT_MEDICINES = frozenset(
    {"acid", "acids", "alcohol", "analog", "anion", "atom", "blue", "carbonate", "cation",
     "chloride", "dioxide", "disulfide", "ethyl", "extract", "factor", "glycol", "group", "human",
     "hydroxide", "ion", "isopropyl", "methyl", "monoxide", "oxide", "peroxide", "seed", "sulfide",
     "tetroxide", "trioxide", "vaccine"}
)  # fmt: skip
"""Second words of DrugBank's entries for minerals, solvents and raw materials, and a few that
would turn almost any first word into something that a chemist could make."""
_MAX_PARTNERS = 3
"""First words with more second words than this (sodium, calcium, hydrocortisone) combine freely."""
_DESCRIBED = ("smiles", "wikipedia_url", "medline_plus_id", "nhs_url")


class Medicine(NamedTuple):
    """A medicine whose name is two plain words."""

    id: str
    first: str
    second: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.second}"


class Medicines(NamedTuple):
    """Two-word medicines in alphabetical order, and every name and variant there is.

    ``well_known``: those on which the NHS, Britain's health service, has a page for patients.
    """

    two_words: tuple[Medicine, ...]
    names: frozenset[str]
    well_known: tuple[str, ...]

    def pairs_by_ending(self) -> frozenset[tuple[str, str]]:
        """The last three letters of the first word, and the second, of every two-word name.

        Chemistry repeats itself: whatever ends in -sone has an acetate, listed or not. A made-up
        name whose pair is in here might exist after all.
        """
        two = (name.split(" ") for name in self.names if name.count(" ") == 1)
        return frozenset((first[-3:], second) for first, second in two)


class _PlainData(pickle.Unpickler):
    """The package keeps its data in a pickle: take texts and containers from it, and no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data")


@cache
def medicines() -> Medicines:
    """Read the dictionary, once per process.

    Raises:
        ExtraMissing: the package is not installed.
        BenchmarkError: its dictionary is not as expected.
    """
    require("eval", _PACKAGE)
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    # Importing the package would index every name for its own search and pull in requests.
    path = Path(spec.origin).parent / "drug_ner_dictionary.pkl.bz2"
    try:
        with bz2.open(path, "rb") as file:
            dictionary: dict[str, dict[str, Any]] = _PlainData(file).load()
        variants = dictionary["drug_variant_to_canonical"]
        substances = dictionary["drug_canonical_to_data"]
    except (OSError, KeyError, pickle.UnpicklingError) as error:
        raise BenchmarkError(f"{path} is not the dictionary expected: {error}") from None
    well_known = sorted(name for name, about in substances.items() if "nhs_url" in about)
    names = frozenset(variants) | frozenset(substances)
    return Medicines(_two_words(substances), names, tuple(well_known))


def _two_words(substances: Mapping[str, Mapping[str, Any]]) -> tuple[Medicine, ...]:
    candidates = [
        Medicine(str(about["drugbank_id"]), *name.split(" "))
        for name, about in sorted(substances.items())
        if _TWO_WORDS.fullmatch(name) and "drugbank_id" in about
    ]
    firsts = Counter(medicine.first for medicine in candidates)
    seconds = Counter(medicine.second for medicine in candidates)
    return tuple(
        medicine
        for medicine in candidates
        if medicine.second not in _NOT_MEDICINES
        and firsts[medicine.first] <= _MAX_PARTNERS
        and int(medicine.id.removeprefix("DB")) not in _ALLERGENS
        # An entry without a structure is kept where its second word is an established one.
        and (
            seconds[medicine.second] > 1 or any(f in substances[medicine.name] for f in _DESCRIBED)
        )
    )
