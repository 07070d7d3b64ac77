import pytest

from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import InvalidInput
from celery_monitor.web.ranges import parse_range
from tests.factories import NOW


def test_default_is_the_last_hour() -> None:
    assert parse_range({}, NOW) == ("1h", NOW - 3600, NOW)


@pytest.mark.parametrize(("age", "name"), [(0, "15m"), (899, "15m"), (901, "1h"), (3 * 86400, "1h")])
def test_default_fits_a_young_record(age: float, name: str) -> None:
    assert parse_range({}, NOW, NOW - age).name == name
    assert parse_range({"range": "6h"}, NOW, NOW - age).name == "6h"


def test_named_range_survives_in_the_url() -> None:
    span = parse_range({"range": "7d"}, NOW)
    assert span.seconds == 7 * 86400
    assert span.query == "range=7d"


def test_two_moments() -> None:
    span = parse_range({"since": "1779990000", "until": "1779993600.4"}, NOW)
    assert span.query == "since=1779990000&until=1779993600"


def test_until_is_never_in_the_future() -> None:
    assert parse_range({"since": f"{NOW - 500}", "until": f"{NOW + 500}"}, NOW).until == NOW


@pytest.mark.parametrize(
    "query",
    [
        {"range": "1y"},
        {"since": "yesterday"},
        {"since": "nan"},
        {"since": "inf"},
        {"since": "-1"},
        {"since": "1e300"},
        {"since": "0"},
        {"until": "1779990000"},
        {"since": "1779990000", "until": "1779990000"},
        {"since": "1779990000", "until": "1779980000"},
    ],
)
def test_nonsense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        parse_range(query, NOW)


def test_unknown_range_lists_the_known() -> None:
    with pytest.raises(InvalidInput, match="15m, 1h, 6h, 24h, 7d, 30d"):
        parse_range({"range": "forever"}, NOW)


def test_range_is_carried_into_links_and_filters() -> None:
    named = parse_range({"range": "6h"}, NOW)
    dragged = parse_range({"since": f"{NOW - 900:.0f}", "until": f"{NOW - 60:.0f}"}, NOW)
    assert (named.kept, named.term) == ({"range": "6h"}, "finished:>-6h")
    assert dragged.kept == {"since": f"{NOW - 900:.0f}", "until": f"{NOW - 60:.0f}"}
    assert parse(named.term, NOW)
    assert parse(dragged.term, NOW)
