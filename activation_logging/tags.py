"""The tags by which benchmarks, data sets and reports understand each other.

A benchmark writes them with each request, a data set groups and filters by them. Any other tag is
kept with the entry and means nothing here.
"""

from __future__ import annotations

BENCHMARK = "benchmark"
DOMAIN = "domain"
STRATUM = "stratum"
GROUP = "group"
ENTITY = "entity"
GOLD = "gold"
ANSWER = "answer"
NAME = "name"
FAME = "fame"
INVENTOR = "inventor"
TEMPLATE = "template"

KIND = "kind"
ABOUT = "about"
BESIDE = "beside"
"""Of a follow-up question: what it asks, and the keys of the answers that it asks about."""

GROUP_TAGS = (GROUP, ENTITY)
"""They name what an answer is about."""

NAME_TAGS = (ENTITY, NAME)
"""They may hold what a question asks about; the question without it is the question's template."""

SPAN_TAGS = (ANSWER, GOLD, NAME, ENTITY)
"""They may hold the text that ``answer_span`` looks for; the first that is there counts."""

TRANSFER_TAGS = (BENCHMARK, DOMAIN, STRATUM)
"""They may tell kinds of questions apart, in the order in which they are tried."""
