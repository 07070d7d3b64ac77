"""The signature of a failure: what joins a group, what does not, and how much work a text can cause."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.failures import UNKNOWN_EXCEPTION, FailureSignature, mask, names_in, signature, unwrapped
from celery_monitor.web.wording import parts

LIBRARY = "/srv/venv/lib/python3.12/site-packages"
CELERY = (
    "Traceback (most recent call last):\n"
    f'  File "{LIBRARY}/celery/app/trace.py", line 453, in trace_task\n'
    "    R = retval = fun(*args, **kwargs)\n"
    "                 ^^^^^^^^^^^^^^^^^^^^\n"
)
SHOP = (
    '  File "/app/shop/orders.py", line 40, in place\n    charge(card)\n'
    '  File "/app/shop/pay.py", line 12, in charge\n    gateway.call(card)\n'
)
REQUESTS = f'  File "{LIBRARY}/requests/sessions.py", line 703, in send\n    r = adapter.send(request)\n'


def sign(exception: str | None, traceback: str | None = None, name: str | None = "shop.pay.charge") -> FailureSignature:
    return signature(name, exception, traceback)


def test_deciding_frame_is_the_deepest_of_the_application() -> None:
    assert sign("ValueError('x')", CELERY + SHOP + REQUESTS + "ValueError: x\n").frame == "shop/pay.py in charge"


@pytest.mark.parametrize(
    "path",
    [
        "<frozen importlib._bootstrap>",
        "/usr/lib/python3.11/json/decoder.py",
        "/usr/lib/python3/dist-packages/yaml/parser.py",
        "/usr/lib64/python3.13t/json/decoder.py",
        "/opt/pypy/lib/pypy3.10/json/decoder.py",
        "/opt/pex/installed_wheels/5f/celery-5.5.3-py3-none-any.whl/celery/app/trace.py",
        "/opt/shop.pyz/deps/billiard/pool.py",
        r"C:\Python312\Lib\json\decoder.py",
    ],
)
def test_library_frames_do_not_decide(path: str) -> None:
    deeper = f'  File "{path}", line 7, in raw_decode\n    raise JSONDecodeError\n'
    assert sign("ValueError('x')", CELERY + SHOP + deeper + "ValueError: x").frame == "shop/pay.py in charge"
    assert sign("ValueError('x')", CELERY + deeper + "ValueError: x").frame is None


@pytest.mark.parametrize(
    "path",
    [
        "/srv/celery/app/pay.py",
        "/srv/celery/app/trace.py",
        "/srv/billiard/pay.py",
        "/srv/lib/python3tools/pay.py",
        "/srv/python/lib/pay.py",
        "/opt/shop.pyz/celery_shop/pay.py",
        r"C:\shop\celery\app\pay.py",
    ],
)
def test_a_directory_named_after_a_library_is_none(path: str) -> None:
    traceback = f'{CELERY}  File "{path}", line 7, in charge\n    raise ValueError\nValueError: x'
    found = sign("ValueError('x')", traceback).frame
    assert found is not None
    assert found.endswith(f"{path.replace(chr(92), '/').rpartition('/')[2]} in charge")
    kinds = [part.kind for part in parts(traceback)]
    assert kinds[-2:] == ["frame", "text"]


def test_line_number_and_release_directory_do_not_split_a_group() -> None:
    def frame(path: str, line: int) -> FailureSignature:
        return sign("ValueError('x')", f'{CELERY}  File "{path}", line {line}, in charge\n    raise\nValueError: x')

    assert frame("/app/shop/pay.py", 12) == frame("/app/shop/pay.py", 99)
    assert frame("/releases/20261102/pay.py", 12) == frame("/releases/20261103/pay.py", 12)
    assert frame("/app/shop/pay.py", 12) != frame("/app/shop/mail.py", 12)


def test_application_frame_of_the_cause_decides_where_the_last_exception_has_none() -> None:
    chained = (
        f"{CELERY}{SHOP}KeyError: 'x'\n\nThe above exception was the direct cause of another\n\n{CELERY}{REQUESTS}"
    )
    assert sign("OSError('y')", chained + "OSError: y\n").frame == "shop/pay.py in charge"


def test_name_type_message_and_frame_each_make_another_digest() -> None:
    traceback = CELERY + SHOP
    signatures = {
        sign("ValueError('a')", traceback).digest,
        sign("ValueError('b')", traceback).digest,
        sign("TypeError('a')", traceback).digest,
        sign("ValueError('a')", CELERY).digest,
        sign("ValueError('a')", traceback, name="shop.mail.send").digest,
    }
    assert len(signatures) == 5
    assert {len(digest) for digest in signatures} == {16}


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("order 4711 took 1.5 s", "order <n> took <n> s"),
        ("3,000 items, -7e3 left", "<n> items, <n> left"),
        ("task 550e8400-e29b-41d4-a716-446655440000 gone", "task <id> gone"),
        ("order_ab12cd34ef56 gone", "<id> gone"),
        ("<Order object at 0x7f00deadbeef>", "<Order object at <id>>"),
        ("no customer 'Bob O\\'Hara' or \"x\"", "no customer <value> or <value>"),
        ("don't do it, it's wrong", "don't do it, it's wrong"),
        ("cannot read /srv/data/4711.csv: denied", "cannot read <path>: denied"),
        (r"cannot read C:\data\x.csv", "cannot read <path>"),
        ("connect to 10.0.0.3:6379 failed", "connect to <address> failed"),
        ("connect to fe80::1 failed", "connect to <address> failed"),
        ("GET https://api.example/v1?a=1 failed", "GET <url> failed"),
        ("no mail to bob.smith+x@mail.example please", "no mail to <email> please"),
        ("late since 2026-11-02T10:00:00.5Z", "late since <time>"),
        ("and/or\nnext   line", "and/or next line"),
    ],
)
def test_what_differs_between_two_failures_is_masked(message: str, masked: str) -> None:
    assert mask(message) == masked


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        ("Declined('card refused')", ("Declined", "card refused")),
        ("shop.errors.Declined('card refused')", ("Declined", "card refused")),
        ("Declined()", ("Declined", "")),
        ("<Declined: card refused>", ("Declined", "card refused")),
        ("KeyError('price')", ("KeyError", "<value>")),
        ("OSError(2, 'No such file or directory')", ("OSError", "No such file or directory")),
        ("ValidationError(['a', 'b'])", ("ValidationError", "[<value>, <value>]")),
        ('ValueError("it\'s late")', ("ValueError", "it's late")),
        ("TimeLimitExceeded(300,)", ("TimeLimitExceeded", "ran over its hard time limit and was killed")),
        ("SoftTimeLimitExceeded()", ("SoftTimeLimitExceeded", "ran over its soft time limit")),
        (
            "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL) Job: 31.')",
            ("WorkerLostError", "its worker process died: signal 9 (SIGKILL)"),
        ),
        (None, (UNKNOWN_EXCEPTION, "")),
        ("???", (UNKNOWN_EXCEPTION, "???")),
    ],
)
def test_exception_is_named(exception: str | None, expected: tuple[str, str]) -> None:
    assert sign(exception)[:2] == expected


@pytest.mark.parametrize("wrapper", ["ExceptionWithTraceback()", "UnpickleableExceptionWrapper('a', 'B', [], 'c')"])
def test_a_wrapper_is_looked_through(wrapper: str) -> None:
    wrapped = f'billiard.einfo.RemoteTraceback: \n"""\n{CELERY}{SHOP}shop.errors.Declined: card 31 refused\n"""\n'
    assert sign(wrapper, wrapped)[:3] == ("Declined", "card <n> refused", "shop/pay.py in charge")


def test_a_wrapped_message_of_many_lines_is_found_by_its_first() -> None:
    traceback = CELERY + SHOP + "shop.errors.Declined: refused\nDETAIL: because\n\nof reasons\n"
    assert sign("ExceptionWithTraceback()", traceback)[:2] == ("Declined", "refused")


@pytest.mark.parametrize(
    ("exception", "last_line", "expected"),
    [
        ("ExceptionWithTraceback()", "shop.errors.Declined: card 'a' refused", """Declined("card 'a' refused")"""),
        (
            "ExceptionWithTraceback()",
            "billiard.exceptions.TimeLimitExceeded: TimeLimitExceeded(1,)",
            "TimeLimitExceeded(1,)",
        ),
        ("ExceptionWithTraceback()", "KeyError", "KeyError()"),
        ("ExceptionWithTraceback()", "", "ExceptionWithTraceback()"),
        ("Declined('31')", "ValueError: other", "Declined('31')"),
        (None, "ValueError: other", None),
    ],
)
def test_the_exception_in_a_wrapper_is_shown(exception: str | None, last_line: str, expected: str | None) -> None:
    assert unwrapped(exception, CELERY + SHOP + last_line + "\n" if last_line else None) == expected


def test_what_is_unwrapped_stays_in_its_group() -> None:
    for line in (
        "shop.errors.Declined: card 31 refused",
        "billiard.exceptions.WorkerLostError: signal 9 (SIGKILL) Job: 1.",
    ):
        traceback = f"{CELERY}{SHOP}{line}\n"
        wrapper = "ExceptionWithTraceback()"
        assert sign(unwrapped(wrapper, traceback), traceback) == sign(wrapper, traceback)


def test_a_wrapper_without_traceback_keeps_its_name() -> None:
    assert sign("ExceptionWithTraceback()").exception_type == "ExceptionWithTraceback"


def test_traceback_names_the_exception_where_the_event_has_none() -> None:
    assert sign(None, CELERY + SHOP + "shop.errors.Declined: refused\n")[:2] == ("Declined", "refused")


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=20))
def test_any_text_has_a_signature(exception: str, traceback: str, name: str) -> None:
    found = signature(name, exception, traceback)
    assert found == signature(name, exception, traceback)
    assert len(found.digest) == 16
    assert len(found.message) <= 500
    assert "\n" not in found.message


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_numbers_never_split_a_group(one: int, other: int) -> None:
    assert sign(f"ValueError('order {one} of 7')") == sign(f"ValueError('order {other} of 7')")


EVIL = ['File "', "'", '"', "\\'", "1:", "a.", "x@", "0", "(", "/", "1,", "a-", "\n", "http://", '\n  File "x", line 1']


@pytest.mark.parametrize("piece", EVIL)
def test_what_lies_beyond_the_part_that_is_read_changes_nothing(piece: str) -> None:
    """The bound itself: a text of 4 MB has the signature of its first and last kilobytes, and takes no longer."""
    huge = piece * (4_000_000 // len(piece))
    head, tail = huge[:20_000], huge[-20_000:]
    found = sign(f"ValueError('{huge}", huge)
    assert found.exception_type == sign(f"ValueError('{head}", tail).exception_type
    assert found.message == sign(f"ValueError('{head}", tail).message
    assert re.sub(r"\s", "", found.message)[:600] == re.sub(r"\s", "", found.message)


@pytest.mark.parametrize(
    ("messages", "loose"),
    [
        (
            ["price list of Acme cannot be read", "price list of Globex Corp cannot be read"],
            "price list of <name> cannot be read",
        ),
        (
            ["customer Acme has no address", "customer Müller-Lüdenscheidt has no address"],
            "customer <name> has no address",
        ),
        (["no price for O'Brien.", "no price for Initech."], "no price for <name>."),
        (
            ["order 7 of Acme from Oslo failed", "order 31 of Hooli from Rome failed"],
            "order <n> of <name> from <name> failed",
        ),
    ],
)
def test_failures_that_differ_in_a_name_are_one_kind_and_each_keeps_its_words(messages: list[str], loose: str) -> None:
    signatures = [sign(f"ValueError({message!r})") for message in messages]
    assert {each.message for each in signatures} == {loose}
    assert len({each.digest for each in signatures}) == 1
    assert [each.variant for each in signatures] == [mask(message) for message in messages]
    assert all(name in messages[0] for name in names_in(messages[0]))
    assert names_in(messages[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP Error 404: Not Found", "HTTP Error 502: Bad Gateway"),
        ("404 Client Error: Not Found for url", "403 Client Error: Forbidden for url"),
        ("payment was Declined", "payment was Refunded"),
        ("cannot connect to Redis", "cannot connect to Postgres"),
        ("Object of type Decimal is not JSON serializable", "Object of type Widget is not JSON serializable"),
        ("expected String but got Integer", "expected Widget but got Gadget"),
        ("Timeout while reading", "Refused while reading"),
        ("code ENOENT of disk", "code EACCES of disk"),
        ("cannot save OrderLine in batch", "cannot save OrderHead in batch"),
        ("price list of Acme cannot be read", "price list of Acme cannot be written"),
    ],
)
def test_failures_that_differ_in_what_went_wrong_stay_apart(one: str, other: str) -> None:
    assert sign(f"ValueError({one!r})").digest != sign(f"ValueError({other!r})").digest


def test_keys_of_a_dict_are_values_and_no_names() -> None:
    found = sign("KeyError('Name')")
    assert (found.message, found.variant) == ("<value>", "<value>")
