"""``python -m benchmarks``: what scripts print becomes the tables of docs/benchmarks.md."""

import pytest

from benchmarks.__main__ import BENCHMARKS, DOCUMENT, SUMMARY, of_queries, of_rest, one, replaced, tables

REST = """
## At rest

| broker | who | CPU at rest | CPU at 7 tasks/s | memory | processes | first page |
|---|---|---|---|---|---|---|
| redis | ours | 0.30 % | 1.50 % | 120 MB | 3 | 0.9 s |
| redis | Flower | 0.40 % | 1.20 % | 55 MB | 1 | 0.8 s |
| redis | ours / Flower | 0.75 | 1.25 | 2.18 | 3.00 | 1.13 |

load after: 0.1
"""
QUERIES = """
| page | bytes | p95 ms | p95 reached |
|---|---|---|---|
| list | 83,282 | 37 | yes |
| several at once | 93,512 | 163 | no: 50 |
| Flower, 1,000 tasks: page of tasks | 10,277 | 1 |  |
"""


def test_summary_compares_the_lines_of_a_table() -> None:
    assert list(of_rest(tables(REST))) == [
        "| at rest, one worker, nobody looking: CPU of a core | at most Flower | 0.3 % | 0.4 % | 0.75 | reached |",
        "| 7 tasks/s: CPU of a core | at most Flower | 1.5 % | 1.2 % | 1.25 | not reached |",
        "| `serve` until the page answers, new record | at most Flower | 0.9 s | 0.8 s | 1.12 | not reached |",
        "| memory of all processes | 100 MB | 120 MB |  |  | not reached |",
        "| processes | 3 | 3 |  |  | reached |",
    ]


def test_summary_names_the_pages_above_their_bound() -> None:
    (line,) = of_queries(tables(QUERIES))
    assert "| 1 of 2; above: several at once 163 ms | 1 ms at most |  | not reached |" in line


def test_a_line_that_is_missing_or_twice_is_an_error() -> None:
    with pytest.raises(LookupError, match="0 lines"):
        one(tables(REST), "memory", who="Sidekiq")
    with pytest.raises(LookupError, match="3 lines"):
        one(tables(REST), "memory", broker="redis")


def test_only_the_text_between_the_marks_is_replaced() -> None:
    before = "a\n<!-- rest -->\nold\n<!-- end of rest -->\nb\n"
    assert replaced(before, "rest", "new\n") == "a\n<!-- rest -->\nnew\n<!-- end of rest -->\nb\n"
    with pytest.raises(LookupError, match="page"):
        replaced(before, "page", "new")


@pytest.mark.parametrize("name", [*BENCHMARKS, SUMMARY])
def test_the_document_has_a_place_for_each(name: str) -> None:
    assert replaced(DOCUMENT.read_text(encoding="utf-8"), name, "new") != ""
