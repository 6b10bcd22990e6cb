"""Values found in text: each where it stands, and nothing where a text could mean two things."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_logging.judges.values import (
    UNITS,
    Date,
    Quantity,
    find_dates,
    find_names,
    find_periods,
    find_quantities,
    find_years,
    other_reading,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("born in 1879", [(1879, "1879")]),
        ("(1879\u20131955)", [(1879, "1879"), (1955, "1955")]),
        ("1914\u201318", [(1914, "1914"), (1918, "18")]),
        ("44 BC", [(-44, "44 BC")]),
        ("He died in 44 B.C.", [(-44, "44 B.C.")]),
        ("106\u201343 BC", [(-106, "106"), (-43, "43 BC")]),
        ("63 BC \u2013 AD 14", [(-63, "63 BC"), (14, "AD 14")]),
        ("in 476 CE.", [(476, "476 CE")]),
        ("In the year 742", [(742, "742")]),
        ("She died in 742.", [(742, "742")]),
        ("14 March 1879", [(1879, "1879")]),
        ("1879-03-14", [(1879, "1879")]),
        ("14/03/1879", [(1879, "1879")]),
        ("March 14, 44 BC", [(-44, "44 BC")]),
        ("It was 2021!", [(2021, "2021")]),
        ("in 742 villages", []),
        ("1,879", []),
        ("1879.5", []),
        ("1500 metres", []),
        ("1500-1600 m", []),
        ("2000 people", []),
        ("$1900", []),
        ("the 1990s and the 19th century", []),
        ("742", []),
    ],
)
def test_years(text: str, found: list[tuple[int, str]]) -> None:
    assert [(year.value, year.text_in(text)) for year in find_years(text)] == found


def test_an_answer_of_a_few_digits_may_be_a_year() -> None:
    assert [year.value for year in find_years("742.", bare=True)] == [742]
    assert [year.value for year in find_years("14 March 742", bare=True)] == [742]


@pytest.mark.parametrize(
    ("text", "approximate"),
    [("c. 1500", True), ("around 1500", True), ("1525/26", True), ("in 1500", False)],
)
def test_what_a_text_does_not_commit_itself_to(text: str, approximate: bool) -> None:
    (year,) = find_years(text)
    assert year.approximate is approximate


@given(st.integers(1000, 2099), st.sampled_from(["", "He died. ", "Born ", "(", "so\u00a0"]))
def test_any_year_is_found_where_it_stands(year: int, before: str) -> None:
    text = f"{before}{year}, they say"
    (found,) = find_years(text)
    assert (found.value, found.start, found.end) == (year, len(before), len(before) + 4)


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("the 1990s", (1990, 1999)),
        ("the 1990's", (1990, 1999)),
        ("the 1900s", (1900, 1999)),
        ("the late 19th century", (1801, 1900)),
        ("nineteenth-century", (1801, 1900)),
        ("the fifth century BC", (-500, -401)),
    ],
)
def test_periods(text: str, period: tuple[int, int]) -> None:
    (found,) = find_periods(text)
    assert tuple(found.value) == period
    assert period[0] in found.value
    assert period[1] + 1 not in found.value


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("14 March 1879", (1879, 3, 14)),
        ("March 14, 1879", (1879, 3, 14)),
        ("the 14th of March, 1879", (1879, 3, 14)),
        ("Mar. 14, 1879", (1879, 3, 14)),
        ("1879-03-14", (1879, 3, 14)),
        ("14/03/1879", (1879, 3, 14)),
        ("03/14/1879", (1879, 3, 14)),
        ("14.3.1879", (1879, 3, 14)),
        ("March 1879", (1879, 3, None)),
        ("15 March 44 BC", (-44, 3, 15)),
        ("May 5", (None, 5, 5)),
        ("SEPT 3, 1939", (1939, 9, 3)),
    ],
)
def test_dates(text: str, date: tuple[int | None, int, int | None]) -> None:
    (found,) = find_dates(text)
    assert tuple(found.value) == date


@pytest.mark.parametrize(
    "text", ["3/4/1879", "30 February 1900", "I may 5 times", "32 March 1900", "1879-13-01"]
)
def test_no_dates(text: str) -> None:
    assert find_dates(text) == []


def test_dates_agree_where_both_say_something() -> None:
    assert Date(1879, 3, None).agrees(Date(1879, 3, 14))
    assert not Date(1879, 3, 14).agrees(Date(1879, 4, 14))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8,849 m", [(8849, "m", "8,849 m")]),
        ("8849 metres (29,032 ft)", [(8849, "m", "8849 metres"), (29032, "ft", "29,032 ft")]),
        ("2.1 million km2", [(2_100_000, "km2", "2.1 million km2")]),
        ("640,679 square kilometres", [(640_679, "km2", "640,679 square kilometres")]),
        ("minus 40 \u00b0C", [(-40, "\u00b0C", "minus 40 \u00b0C")]),
        ("\u221240 degrees Celsius", [(-40, "\u00b0C", "\u221240 degrees Celsius")]),
        ("373.15 K", [(373.15, "K", "373.15 K")]),
        ("an 8,849-metre peak", [(8849, "m", "8,849-metre")]),
        ("105.4\u00a0km\u00b2 (40.7\u00a0sq\u00a0mi)",
         [(105.4, "km2", "105.4\u00a0km\u00b2"), (40.7, "mi2", "40.7\u00a0sq\u00a0mi")]),
        ("300\u2013400 m", [(300, "m", "300"), (400, "m", "400 m")]),
        ("5 ft 6 in", [(5.5, "ft", "5 ft 6 in")]),
        ("5'6\"", [(5.5, "ft", "5'6\"")]),
        ("45%", [(45, "%", "45%")]),
        ("45 per cent", [(45, "%", "45 per cent")]),
        ("US$ 20,000", [(20_000, "$", "US$ 20,000")]),
        ("$1.5 trillion", [(1.5e12, "$", "$1.5 trillion")]),
        ("1.5 \u00d7 10^6 km", [(1.5e6, "km", "1.5 \u00d7 10^6 km")]),
        ("19.3 g/cm3", [(19.3, "g/cm3", "19.3 g/cm3")]),
        ("67 million people", [(67_000_000, None, "67 million")]),
        ("seventy-nine", [(79, None, "seventy-nine")]),
        ("two hundred and six bones", [(206, None, "two hundred and six")]),
        ("a million stars", [(1_000_000, None, "a million")]),
        ("born in 1879", []),
        ("on 14 March 1879", []),
        ("the 5th of the 1990s", []),
        ("one of them", []),
        ("3,5 m", [(3.5, "m", "3,5 m")]),
        ("players 3,5,7", []),
        ("8 849 m", [(8849, "m", "8 849 m")]),
        ("8\u2019849 m", [(8849, "m", "8\u2019849 m")]),
        ("17\u2009098\u2009246 km2", [(17_098_246, "km2", "17\u2009098\u2009246 km2")]),
        ("17.098.246 km2", [(17_098_246, "km2", "17.098.246 km2")]),
        ("8.849,5 m", [(8849.5, "m", "8.849,5 m")]),
        ("8 849,5 m", [(8849.5, "m", "8 849,5 m")]),
        ("In 2020 5 000 people", [(5000, None, "5 000")]),
    ],
)  # fmt: skip
def test_quantities(text: str, found: list[tuple[float, str | None, str]]) -> None:
    made = find_quantities(text)
    assert [(q.value.unit.name if q.value.unit else None, q.text_in(text)) for q in made] == [
        (unit, words) for _, unit, words in found
    ]
    for one, (number, _, _) in zip(made, found, strict=True):
        assert math.isclose(one.value.number, number)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.849 m", 8849), ("55,845 u", 55.845), ("8.849,5 m", None), ("8849 m", None), ("1.5", None)],
)
def test_other_languages_read_some_numbers_otherwise(text: str, number: float | None) -> None:
    (found,) = find_quantities(text)
    other = other_reading(text, found)
    assert (other and other.number) == number


def test_a_number_like_a_year_is_one_if_asked_for() -> None:
    assert find_quantities("1500") == []
    assert [q.value.number for q in find_quantities("1500", years=True)] == [1500]


@pytest.mark.parametrize(
    ("quantity", "unit", "number"),
    [
        (Quantity(29_032, UNITS["ft"]), "m", 8848.95),
        (Quantity(100, UNITS["\u00b0C"]), "\u00b0F", 212),
        (Quantity(0, UNITS["K"]), "\u00b0C", -273.15),
        (Quantity(1, UNITS["mi2"]), "km2", 2.59),
        (Quantity(7), "m", 7),
    ],
)
def test_units_are_converted(quantity: Quantity, unit: str, number: float) -> None:
    assert quantity.to(UNITS[unit]).number == pytest.approx(number, rel=1e-3)


def test_units_of_other_sorts_are_refused() -> None:
    with pytest.raises(ValueError, match="kg cannot be converted to m"):
        Quantity(1, UNITS["kg"]).to(UNITS["m"])


def test_the_longest_name_wins_and_stands_where_it_was_written() -> None:
    table = {"guinea": "GN", "papua new guinea": "PG", "sao tome": "ST", "us": "US", "nice": "FR"}
    text = "nice: Papua New Guinea, S\u00e3o Tome\u0301 and the us in Nice"
    found = find_names(text, table, capitalised=True)
    assert [(name.value, name.text_in(text)) for name in found] == [
        ("PG", "Papua New Guinea"),
        ("ST", "S\u00e3o Tome\u0301"),
        ("FR", "Nice"),
    ]
    assert [name.value for name in find_names("the US", table)] == ["US"]


@pytest.mark.parametrize(
    "text", ["1 " * 20_000, "1-" * 20_000, "March 1879 " * 5_000, "one " * 20_000, "5'" * 20_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    find_quantities(text)
    find_dates(text)
