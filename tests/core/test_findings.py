from celery_monitor.core.health.findings import RecentSamples, is_growing, is_rising, unattended
from celery_monitor.records.queue import Queue


def test_growth_needs_two_samples_and_more_than_noise() -> None:
    assert is_growing([(100.0, 5), (160.0, 400)], now=200.0)
    assert not is_growing([(160.0, 400)], now=200.0)
    assert not is_growing([(100.0, 5), (160.0, 9)], now=200.0)
    assert not is_growing([(100.0, 1000), (160.0, 1030)], now=200.0)
    assert not is_growing([(100.0, 400), (160.0, 5)], now=200.0)


def test_queue_that_is_being_emptied_does_not_grow_though_it_was_shorter_once() -> None:
    assert not is_growing([(100.0, 0), (160.0, 75), (200.0, 40)], now=200.0)


def test_growth_ignores_what_is_old_or_unknown() -> None:
    assert not is_growing([(100.0, 5), (700.0, 400), (760.0, 401)], now=800.0)
    assert not is_growing([(700.0, None), (760.0, 401)], now=800.0)


def test_queue_that_was_emptied_in_between_begins_anew() -> None:
    assert is_rising([0, 180, 190, 60, 3, 0, 20, 45])
    assert not is_rising([0, 180, 190, 150, 100, 110, 120])
    assert not is_rising([180, 190, 3, 0, 4, 8])


def test_queue_that_rises_sample_after_sample() -> None:
    assert is_rising([0, 0, 12, 25])
    assert not is_rising([0, 25])  # may be a burst
    assert not is_rising([0, 25, 14])
    assert not is_rising([0, 25, 25])
    assert not is_rising([300, 310, 320])  # noise of a deep queue
    assert is_rising([300, 0, 14, 31]) is False  # it still has far less than a moment ago


def test_samples_older_than_a_minute_do_not_count() -> None:
    def rising(*readings: tuple[float, int]) -> tuple[str, ...]:
        samples = RecentSamples()
        found: tuple[str, ...] = ()
        for at, ready in readings:
            found = samples.rising([Queue(cluster="shop", name="emails", ready=ready)], at)
        return found

    assert rising((700.0, 0), (701.0, 12), (702.0, 25)) == ("emails",)
    assert rising((700.0, 0), (770.0, 12), (771.0, 25)) == ()


def test_queue_without_messages_needs_no_consumer() -> None:
    queue = Queue(cluster="shop", name="emails", ready=3, consumers=0)
    assert unattended(queue)
    assert not unattended(Queue(cluster="shop", name="emails", ready=0, consumers=0))
    assert not unattended(Queue(cluster="shop", name="emails", ready=3))
