import msgspec
import pytest

from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import InvalidInput
from celery_monitor.records.queue import QueueSample
from celery_monitor.records.receiver import Gap
from celery_monitor.records.series import Bucket, Percentiles, Series, WaitPercentiles
from celery_monitor.web.charts import (
    Chart,
    ChartSeries,
    depth,
    drawing,
    gap_spans,
    parse_range,
    percentiles,
    sparkline,
    throughput,
    wait_title,
)
from tests.factories import NOW

START = NOW // 300 * 300


def make_chart(kind: str, *values: list[int | float | None]) -> Chart:
    series = [ChartSeries(name=f"s{n}", colour=f"--c{n}", values=each) for n, each in enumerate(values)]
    return Chart(kind=kind, unit="count", since=0.0, until=120.0, step=60, at=[0.0, 60.0], series=series)  # type: ignore[arg-type]


def test_stack_draws_the_topmost_first() -> None:
    layers = drawing(make_chart("stacked", [3, 1], [1, 3]))
    assert [layer.colour for layer in layers] == ["--c1", "--c0"]
    assert layers[0].path == "M0 60L0.0 2.0H300.0L300.0 2.0H600.0V60Z"
    assert layers[1].path == "M0 60L0.0 16.5H300.0L300.0 45.5H600.0V60Z"


def test_line_breaks_where_nothing_is_known() -> None:
    assert sparkline([2, None, 4], width=100) == "M0.0 10.0M100.0 1.0"
    assert sparkline([None, None]) == ""
    assert sparkline([]) == ""


def test_zeros_lie_on_the_floor() -> None:
    assert sparkline([0, 0], width=50, height=20) == "M0.0 19.0L50.0 19.0"


def test_empty_means_nothing_to_draw() -> None:
    assert make_chart("stacked", [0, 0], [None, 0]).empty
    assert not make_chart("stacked", [None, 0], [0, 2]).empty
    assert make_chart("area", [None, None]).empty
    assert not make_chart("area", [None, 0]).empty  # known to be none


def test_gaps_are_cut_to_the_range() -> None:
    gaps = [
        Gap(cluster="shop", began=5.0, ended=None, cause="lasting"),
        Gap(cluster="shop", began=1.0, ended=2.0, cause="before"),
        Gap(cluster="shop", began=1.0, ended=30.0, cause="reaching in"),
        Gap(cluster="shop", began=99.0, ended=300.0, cause="after"),
    ]
    assert gap_spans(gaps, 10.0, 90.0) == [(10.0, 90.0, "lasting"), (10.0, 30.0, "reaching in")]


def test_json_is_what_the_script_reads() -> None:
    text = make_chart("area", [1, None]).json
    assert '"values":[1,null]' in text
    assert '"partial":null' in text


def make_series(minutes: int, failed: int = 0, lost: int = 0) -> Series:
    buckets = [Bucket(at=START + 60.0 * n, succeeded=2) for n in range(minutes - 1)]
    buckets.append(Bucket(at=START + 60.0 * (minutes - 1), failed=failed, lost=lost))
    return Series(since=START, until=START + 60.0 * minutes, resolution=60, buckets=buckets, gaps=[], depth=[])


def test_many_minutes_are_put_together_into_bars_without_losing_any() -> None:
    chart = throughput(make_series(600, failed=3), now=START)
    assert chart.step == 300
    assert len(chart.at) <= 121
    assert {each.name: sum(value or 0 for value in each.values) for each in chart.series} == {
        "succeeded": 1198,
        "failed": 3,
    }


def test_outcomes_that_came_are_shown_and_the_filling_bar_is_marked() -> None:
    chart = throughput(make_series(5, lost=1), now=START + 290)
    assert [each.name for each in chart.series] == ["succeeded", "failed", "lost"]
    assert chart.partial == START + 240
    assert throughput(make_series(5, lost=1), now=START + 301).partial is None


def test_percentiles_are_unknown_where_nothing_ran() -> None:
    series = make_series(3)
    buckets = [*series.buckets[:2], Bucket(at=START + 120.0, run=Percentiles(0.5, 2.5, 9.0))]
    chart = percentiles(msgspec.structs.replace(series, buckets=buckets), "run", START)
    assert [each.values for each in chart.series] == [[None, None, 0.5], [None, None, 2.5], [None, None, 9.0]]
    assert [each.summary for each in chart.series] == [0.5, 2.5, 9.0]


def test_legend_says_what_its_values_are_of() -> None:
    series = make_series(15, failed=1)
    assert throughput(series, START).summary_of == "total of 15 min"
    assert (
        throughput(msgspec.structs.replace(series, until=START + 840.0), START).summary_of
        == "total of the selected time"
    )
    assert percentiles(series, "run", START).summary_of == "last minute with tasks"
    assert depth(series).summary_of == "most in the last minute"


def test_share_of_waits_that_are_counted_from_receipt_is_in_the_title() -> None:
    series = make_series(3)
    known = WaitPercentiles(0.5, 2.5, 9.0, 0.0)
    guessed = WaitPercentiles(0.5, 2.5, 9.0, 0.6)
    buckets = [Bucket(at=START, started=30, wait=known), Bucket(at=START + 60.0, started=10, wait=guessed)]
    assert wait_title(msgspec.structs.replace(series, buckets=buckets[:1])) == "Wait time"
    assert wait_title(msgspec.structs.replace(series, buckets=buckets)) == "Wait time, 15 % since receipt"
    assert wait_title(series) == "Wait time"


def test_depth_breaks_where_nothing_was_measured() -> None:
    samples = [QueueSample(at=START + at, ready=7, unacked=1, consumers=1, oldest=None) for at in (0, 60, 600)]
    chart = depth(msgspec.structs.replace(make_series(11), depth=samples), with_unacked=True)
    assert chart.series[0].values == [7, 7, None, 7]
    assert chart.series[1].summary == 1


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
    assert (named.parameters, named.term) == ({"range": "6h"}, "finished:>-6h")
    assert dragged.parameters == {"since": f"{NOW - 900:.0f}", "until": f"{NOW - 60:.0f}"}
    assert parse(named.term, NOW)
    assert parse(dragged.term, NOW)
