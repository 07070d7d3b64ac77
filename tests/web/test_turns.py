"""Whose view is read next."""

from celery_monitor.web.live import Turns


def taken(turns: Turns[str], most: int = 1000) -> list[tuple[str, str]]:
    """What is read, one view after the other."""
    found: list[tuple[str, str]] = []
    while len(found) < most and (turn := turns.take()) is not None:
        found.append(turn)
        turns.done(turn[0])
    return found


def test_one_user_with_many_views_does_not_hold_up_the_others() -> None:
    turns: Turns[str] = Turns()
    for number in range(800):
        turns.ask(f"e{number}", ["eve"])
    turns.ask("a", ["ada"])
    turns.ask("b", ["bob"])
    assert {user for user, _ in taken(turns, 3)} == {"eve", "ada", "bob"}
    assert len(taken(turns)) == 799


def test_users_take_turns_all_along() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.ask(f"e{number}", ["eve"])
    for number in range(5):
        turns.ask(f"a{number}", ["ada"])
    assert [user for user, _ in taken(turns, 10)] == ["eve", "ada"] * 5


def test_who_asks_again_and_again_keeps_the_place_in_the_round() -> None:
    turns: Turns[str] = Turns()
    turns.ask("a", ["ada"])
    for number in range(50):
        turns.ask("e", ["eve"])
        turns.ask("a", ["ada"])
        assert ("ada", "a") in taken(turns, 2), number


def test_view_that_nobody_has_seen_comes_before_those_that_may_have_changed() -> None:
    turns: Turns[str] = Turns()
    turns.ask("old 1", ["ada"])
    turns.ask("old 2", ["ada"])
    turns.ask("new", ["ada"], urgent=True)
    turns.ask("old 2", ["ada"], urgent=True)
    assert [view for _, view in taken(turns)] == ["new", "old 2", "old 1"]


def test_view_of_many_users_is_read_once_in_the_first_turn_of_any() -> None:
    turns: Turns[str] = Turns()
    turns.ask("own", ["eve"])
    turns.ask("shared", ["eve", "ada", "bob"])
    assert sorted(view for _, view in taken(turns)) == ["own", "shared"]
    turns.ask("shared", ["eve", "ada", "bob"])
    assert [view for _, view in taken(turns)] == ["shared"]


def test_slow_view_of_a_user_leaves_the_other_reader_to_others() -> None:
    turns: Turns[str] = Turns()
    turns.ask("slow", ["eve"])
    turns.ask("more", ["eve"])
    turns.ask("a", ["ada"])
    assert turns.take() == ("eve", "slow")
    assert taken(turns) == [("ada", "a")]
    turns.done("eve")
    assert taken(turns) == [("eve", "more")]


def test_view_that_changes_while_it_is_read_is_read_again_after_that() -> None:
    turns: Turns[str] = Turns()
    turns.ask("shared", ["eve", "ada"])
    user, _ = turns.take() or ("", "")
    turns.ask("shared", ["eve", "ada"])
    assert turns.take() is None  # never twice at once
    turns.done(user)
    assert [view for _, view in taken(turns)] == ["shared"]


def test_view_that_was_closed_is_not_read_and_takes_no_room() -> None:
    turns: Turns[str] = Turns()
    for number in range(1000):
        turns.ask(f"v{number}", ["eve"], urgent=True)
        turns.drop(f"v{number}", "eve")
    assert taken(turns) == []
    assert not turns._queues
    turns.ask("v1", ["eve"])
    assert taken(turns) == [("eve", "v1")]
