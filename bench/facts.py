"""Count the questions of ``wiki_facts``, and how often their sources differ.

python -m bench.facts
python -m bench.facts --docs wiki-facts    # write docs/measured/wiki-facts-*.json as well
"""

from __future__ import annotations

import argparse
from collections import Counter

from rich.table import Table

from activation_logging.benchmarks.sources.people import Life, people
from activation_logging.benchmarks.wiki.measures import areas
from activation_logging.benchmarks.wiki_facts import FAME, SORTS, all_facts
from activation_logging.judges.typed import TOLERANCES
from bench.docs import add_flag, record, terminal


def questions() -> Table:
    """Questions by sort and fame, and for how many of them two sources say the same."""
    table = Table("what is asked for", *FAME, "all", "from two sources")
    counts = Counter((fact.sort, fact.fame) for fact in all_facts())
    double = Counter(fact.sort for fact in all_facts() if len(fact.sources) > 1)
    for sort in SORTS:
        numbers = [counts[sort, fame] for fame in FAME]
        cells = [str(number) if number else "" for number in numbers]
        table.add_row(sort, *cells, str(sum(numbers)), str(double[sort]) if double[sort] else "")
    sums = [sum(counts[sort, fame] for sort in SORTS) for fame in FAME]
    table.add_row("all", *map(str, sums), str(counts.total()), str(double.total()))
    return table


def comparisons() -> Table:
    """How many values two sources give, and on how many they differ."""
    table = Table("value", "sources", "given by both", "left out, for they differ")
    for field in Life._fields:
        agreed = sum(field in person.agreed for person in people())
        differ = sum(field in person.differ for person in people())
        both = str(agreed + differ)
        table.add_row(f"year of {field}", "Wikipedia, WordNet", both, str(differ))
    pairs = list(areas())
    differ = sum(abs(one - other) > TOLERANCES["area"] * one for _, one, other in pairs)
    table.add_row("area of a country", "GeoNames, Wikipedia", str(len(pairs)), str(differ))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_flag(parser)
    name = parser.parse_args().docs
    for what, table in (("questions", questions()), ("sources", comparisons())):
        terminal.print(table)
        record(name and f"{name}-{what}", table)


if __name__ == "__main__":
    main()
