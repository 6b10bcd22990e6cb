"""Whether an answer is in English, the only language whose denials the rules know."""

from __future__ import annotations

import re
import unicodedata

from activation_logging.text import fold

_ENGLISH_WORDS = (
    "the is are was were of and a an to it its that this not i you he she they by with for as be "
    "has have had from but or there which who do does did can could would my"
)
# Small words of German, French, Spanish, Italian, Portuguese and Dutch that no English text has.
_OTHER_WORDS = (
    "der das und ist ein eine einen einer nicht von ich kein keine keinen mit auf zu existiert "
    "le la les des est une et pas je ne du que dans pour sur il elle aucun aucune existe cette "
    "el los las es una del por con para como y se lo su esta este ningun ninguna "
    "il gli di che non per della sono nessun nessuna esiste uma nao em os dos nenhum nenhuma "
    "het een niet geen van ik deze bestaat"
)
_ENGLISH, _OTHERS = frozenset(_ENGLISH_WORDS.split()), frozenset(_OTHER_WORDS.split())
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]+")
_MIN_FOREIGN = 2
_LOOKED_AT = 2000  # characters


def is_english(text: str, name: str = "") -> bool:
    """False where most letters are not Latin, or small words of another language prevail.

    Names alone have too few of either to say, and pass for English. Words of the name that was
    asked about do not count, nor do those with a capital inside a text: "El Salvador".

    >>> is_english("Apis nova ist eine Biene.")
    False
    >>> is_english("Juan de la Cruz was a poet.")
    True

    Args:
        text: the answer.
        name: what was asked about.
    """
    start = text[:_LOOKED_AT]
    letters = _LETTER.findall(start)
    latin = sum(unicodedata.name(letter, "").startswith(("LATIN", "FULL")) for letter in letters)
    if 2 * latin < len(letters):
        return False
    asked = set(fold(name).split())
    words = [
        fold(match[0])
        for match in _WORD.finditer(start)
        if match.start() == 0 or match[0].islower() or match[0] == "I"
    ]
    foreign = sum(word in _OTHERS and word not in asked for word in words)
    return foreign < _MIN_FOREIGN or foreign <= sum(word in _ENGLISH for word in words)
