import pytest

from celery_monitor.control.inspect import Usage, usage_of

RUSAGE = {"utime": 12.5, "stime": 1.75, "maxrss": 102_632}


@pytest.mark.parametrize(
    ("system", "peak"), [("Linux", 102_632 * 1024), ("Darwin", 102_632), ("Windows", None), (None, None)]
)
def test_memory_is_told_where_its_unit_is_known(system: str | None, peak: int | None) -> None:
    assert usage_of({"uptime": 1014, "rusage": RUSAGE}, system) == Usage(1014.0, 14.25, peak)


@pytest.mark.parametrize("rusage", [None, "not supported by this platform", {"utime": 3.0}, {"utime": "3", "stime": 1}])
def test_what_is_not_said_is_unknown(rusage: object) -> None:
    assert usage_of({"uptime": 7, "rusage": rusage}, "Linux") == Usage(7.0, None, None)


def test_no_answer_is_no_usage() -> None:
    assert usage_of(None, "Linux") is None
