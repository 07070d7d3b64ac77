from celery_monitor.core.words import age_words, counted, named


def test_ages_in_one_unit() -> None:
    assert [age_words(seconds) for seconds in (-3.0, 40.9, 195.0, 7300.0, 100_000.0, 200_000.0)] == [
        "0 s",
        "40 s",
        "3 min",
        "2 h",
        "27 h",
        "2 days",
    ]


def test_numbers_with_their_noun() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(12_345, "entry", "entries") == "12\u202f345 entries"


def test_of_many_names_the_rest_is_counted() -> None:
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
