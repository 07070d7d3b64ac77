from monitor.receiver import helpers
from monitor.records import FailingHelper
from monitor.records import Gap
from monitor.records import ReceiverHealth
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.web.banners import MEANINGS
from monitor.web.banners import Banner
from monitor.web.banners import banners
from tests.factories import NOW


def make_health(**fields: object) -> ReceiverHealth:
    given: dict[str, object] = {"cluster": "shop", "connected": True, "updated_at": NOW - 1, "lag_seconds": 0.2}
    return ReceiverHealth(**{**given, **fields})  # type: ignore[arg-type]


def make_worker(hostname: str = "worker1@shop", **fields: object) -> Worker:
    given: dict[str, object] = {"cluster": "shop", "status": WorkerStatus.ONLINE, "skew": 0.1, "events_enabled": True}
    return Worker(hostname=hostname, **{**given, **fields})  # type: ignore[arg-type]


def only(*given: Banner) -> Banner:
    assert len(given) == 1, given
    return given[0]


def test_nothing_to_say_when_all_is_well() -> None:
    assert banners([make_health()], [make_worker()], [], NOW) == ()


def test_no_receiver_says_how_to_start_one() -> None:
    banner = only(*banners([], [], [], NOW))
    assert banner.kind == "receiver"
    assert "celery-monitor serve --broker" in banner.then


def test_receiver_that_stopped_writing() -> None:
    banner = only(*banners([make_health(updated_at=NOW - 16)], [make_worker()], [], NOW))
    assert (banner.kind, banner.tone, banner.since) == ("receiver", "bad", NOW - 16)


def test_receiver_that_says_nothing_for_seconds_may_be_busy() -> None:
    banner = only(*banners([make_health(updated_at=NOW - 3.5)], [make_worker()], [], NOW))
    assert (banner.kind, banner.tone, banner.since) == ("lag", "warning", NOW - 3.5)
    assert banners([make_health(updated_at=NOW - 2.5)], [make_worker()], [], NOW) == ()


def test_cause_of_a_gap_ends_with_one_full_stop() -> None:
    gap = Gap(cluster="shop", began=NOW - 40, ended=NOW - 31, cause="the broker closed it; we go on trying.")
    assert only(*banners([make_health()], [make_worker()], [gap], NOW)).text.endswith("we go on trying.")
    assert ".." not in only(*banners([make_health()], [make_worker()], [gap], NOW)).text


def test_broker_unreachable_tells_the_error() -> None:
    health = make_health(connected=False, error="connection refused at redis:6380", last_event_at=NOW - 31)
    banner = only(*banners([health], [make_worker()], [], NOW))
    assert banner.kind == "broker"
    assert banner.since == NOW - 31
    assert banner.text == "The broker cannot be reached: connection refused at redis:6380"


def test_gap_that_lasts() -> None:
    gap = Gap(cluster="shop", began=NOW - 40, ended=None, cause="the broker restarted", dropped=7)
    banner = only(*banners([make_health()], [make_worker()], [gap], NOW))
    assert banner.text == "Events are being missed: the broker restarted, 7 events known to be missing."
    assert banner.since == NOW - 40


def test_gap_that_is_over_stays_for_an_hour() -> None:
    gap = Gap(cluster="shop", began=NOW - 3700, ended=NOW - 3599, cause="receiver was down")
    banner = only(*banners([make_health()], [make_worker()], [gap], NOW))
    assert banner.text == "Events of 1 min may be missing: receiver was down."
    assert banners([make_health()], [make_worker()], [gap], NOW + 2) == ()


def test_several_gaps_are_one_banner() -> None:
    gaps = [Gap(cluster="shop", began=NOW - n, ended=NOW - n + 5, cause=f"cause {n}") for n in (900, 60, 300)]
    banner = only(*banners([make_health()], [make_worker()], gaps, NOW))
    assert banner.text == "Events of 5 s may be missing: cause 60 and 2 more gaps in this hour."


def test_no_workers() -> None:
    gone = make_worker(status=WorkerStatus.OFFLINE)
    assert only(*banners([make_health()], [gone], [], NOW)).text == "No worker is up."
    assert only(*banners([make_health()], [], [], NOW)).text == "No worker has been seen."


def test_a_silent_worker_counts_as_alive() -> None:
    assert banners([make_health()], [make_worker(status=WorkerStatus.SILENT)], [], NOW) == ()


def test_workers_without_events_offer_the_button() -> None:
    workers = [make_worker(f"w{n}@shop", events_enabled=False) for n in range(5)]
    banner = only(*banners([make_health()], workers, [], NOW))
    assert banner.enable == "shop"
    assert banner.text.startswith("w0@shop, w1@shop, w2@shop and 2 more send no task events")


def test_unknown_events_setting_is_not_accused() -> None:
    assert banners([make_health()], [make_worker(events_enabled=None)], [], NOW) == ()


def test_clock_skew_in_both_directions() -> None:
    assert only(*banners([make_health()], [make_worker(skew=-3.24)], [], NOW)).text == (
        "worker1@shop: clock is off by up to 3.2 s."
    )
    assert banners([make_health()], [make_worker(skew=2.0)], [], NOW) == ()


def test_receiver_behind() -> None:
    banner = only(*banners([make_health(lag_seconds=95.0)], [make_worker()], [], NOW))
    assert (banner.kind, banner.text) == ("lag", "The receiver is 1 min behind.")


def test_clusters_are_named_and_kept_apart() -> None:
    health = [make_health(), make_health(cluster="mail", connected=False)]
    found = banners(health, [make_worker(), make_worker(cluster="mail", skew=9.0)], [], NOW)
    assert [banner.kind for banner in found] == ["broker", "skew"]
    assert found[0].text == "The broker of mail cannot be reached."


def test_a_helper_that_keeps_failing_is_named_with_what_it_means() -> None:
    helper = FailingHelper(name="queue sampler", error="NOPERM", since=NOW - 70, failures=3)
    banner = only(*banners([make_health(helpers=(helper,))], [make_worker()], [], NOW))
    assert (banner.kind, banner.tone, banner.since) == ("helper", "warning", NOW - 70)
    assert banner.text == "The queue sampler keeps failing: NOPERM."
    assert banner.then == "Queue depths are out of date."
    every = {value for name, value in vars(helpers).items() if name.isupper() and isinstance(value, str)}
    assert every == MEANINGS.keys()


def test_helpers_that_fail_with_their_broker_are_not_said_beside_it() -> None:
    helper = FailingHelper(name="sampler", error="Connection refused", since=NOW - 7, failures=9)
    found = banners([make_health(connected=False, error="Connection refused.", helpers=(helper,))], [], [], NOW)
    assert [banner.kind for banner in found] == ["broker"]


def test_a_receiver_that_ends_before_it_can_say_anything() -> None:
    helper = FailingHelper(name="receiver", error="OSError: damaged", since=NOW - 7, failures=4)
    banner = only(*banners([make_health(connected=False, updated_at=None, helpers=(helper,))], [], [], NOW))
    assert (banner.kind, banner.tone) == ("helper", "bad")
    assert banner.text == "The receiver ended 4 times in a row: OSError: damaged."
