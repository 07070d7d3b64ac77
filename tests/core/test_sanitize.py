"""Secrets never reach the store: not nested, not escaped, not truncated."""

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.untrusted import PARTS
from celery_monitor.settings import REDACTED_KEYS

redactor = Redactor(REDACTED_KEYS)
MARK = "Zq7"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("{'password': 'x', 'user': 'bob'}", "{'password': '***', 'user': 'bob'}"),
        ("{'db_PassWord_2': 'x', 'user': 'bob'}", "{'db_PassWord_2': '***', 'user': 'bob'}"),
        ('{"api_key": "it\'s", \'n\': 1}', '{"api_key": "***", \'n\': 1}'),
        ("{'X-Api-Key': b'x', 'n': 1}", "{'X-Api-Key': b'***', 'n': 1}"),
        ("{'token': 12345, 'n': 1}", "{'token': '***', 'n': 1}"),
        ("{'token': None, 'n': 1}", "{'token': '***', 'n': 1}"),
        ("{'secrets': ['a', {'b': ('c', ']')}], 'n': 1}", "{'secrets': '***', 'n': 1}"),
        ("{'cookie': Jar('a', b=[1]), 'n': 1}", "{'cookie': '***', 'n': 1}"),
        ("login(user='bob', password='x')", "login(user='bob', password='***')"),
        ("Config(password=abc, user=bob)", "Config(password=***, user=bob)"),
        ("Config(password=7)", "Config(password=***)"),
        ("(('Authorization', 'Bearer x'), ('Host', 'shop'))", "(('Authorization', '***'), ('Host', 'shop'))"),
        ("[(b'cookie', b'a=b'), (b'host', b'shop')]", "[(b'cookie', b'***'), (b'host', b'shop')]"),
        ("['mysql', '--password', 'x', '-v']", "['mysql', '--password', '***', '-v']"),
        ("""('{"password": "x", "n": 1}', 2)""", """('{"password": "***", "n": 1}', 2)"""),
        (r"""("{\"password\": \"x\", 'n': 1}", 2)""", r"""("{\"password\": \"***\", 'n': 1}", 2)"""),
        ("('https://shop/?a=1&token=x&b=2',)", "('https://shop/?a=1&token=***&b=2',)"),
        ("('Authorization: Bearer x\\r\\nHost: shop',)", "('Authorization: ***\\r\\nHost: shop',)"),
        ("('amqp://bob:x@shop/vhost',)", "('amqp://bob:***@shop/vhost',)"),
        ("('redis://:x@shop:6379/0',)", "('redis://:***@shop:6379/0',)"),
        ("('amqp://bob:p@ss@shop/vhost',)", "('amqp://bob:***@shop/vhost',)"),
        ("('amqp://bob:x/y@shop',)", "('amqp://bob:***@shop',)"),
    ],
)
def test_a_secret_is_masked_and_what_stands_beside_it_is_kept(text: str, masked: str) -> None:
    assert redactor.text(text) == masked
    assert redactor.text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "(31, 'EUR')",
        "{'user': 'bob', 'keyboard': 'x'}",
        "{'grant_type': 'password', 'user': 'bob'}",
        "('please reset the password', 'bob')",
        "('redis://localhost:6379/0', 'http://shop:80/?to=a@b')",
        "('http://[::1]:80/',)",
        "()",
        "",
    ],
)
def test_a_text_without_a_secret_is_kept_as_it_is(text: str) -> None:
    assert redactor.text(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("{'password': 'hunter2...", "{'password': '***'"),
        ("{'password': ['hunter2', 'x...", "{'password': '***'"),
        ("{'password': {'a': hunt", "{'password': '***'"),
        ("('amqp://bob:hunter2...',)", "('amqp://bob:***',)"),
        ("{'token': <Token hunter2>, 'n': 1}", "{'token': '***'"),
        ("{'token:42': 'hunter2'}", "{'token:***"),
        ("{'password': 'a\\\\', 'n': 1}", "{'password': '***'"),
    ],
)
def test_where_the_end_is_not_certain_all_that_follows_is_masked(text: str, masked: str) -> None:
    assert redactor.text(text) == masked
    assert redactor.text(masked) == masked


def test_the_keys_are_the_ones_given() -> None:
    own = Redactor(["pin_code", "Ssn"])
    assert own.text("{'pinCode': '1', 'ssn': '2', 'password': '3'}") == (
        "{'pinCode': '***', 'ssn': '***', 'password': '3'}"
    )


def test_without_keys_only_addresses_are_masked() -> None:
    assert Redactor([]).text("{'password': 'x', 'u': 'a://b:c@d'}") == "{'password': 'x', 'u': 'a://b:***@d'}"


def _as_dict(key: str, secret: str) -> object:
    return {key: secret}


def _as_pair(key: str, secret: str) -> object:
    return [(key, secret), ["Host", "shop"]]


def _as_json(key: str, secret: str) -> object:
    return json.dumps({"n": 1, key: secret, "z": "it's"})


def _as_json_twice(key: str, secret: str) -> object:
    return json.dumps({"body": json.dumps({key: [secret, 1], "z": 2})})


def _as_list(key: str, secret: str) -> object:
    return {key: [1, (secret, {"deep": secret}), {secret}]}


def _as_bytes(key: str, secret: str) -> object:
    return {key.encode(): secret.encode(errors="replace")}


def _as_call(key: str, secret: str) -> object:
    return f"login({key.replace('-', '_')}={secret!r}, n=1)"


junk = st.text(alphabet="ab'\"\\,:=()[]{}<>& \n\t@/é", max_size=8)
secrets = st.lists(junk, min_size=2, max_size=4).map(MARK.join)
affixes = st.text(alphabet="abXY_-", max_size=5)
keys = st.builds(
    lambda before, word, after, change: before + change(word) + after,
    affixes,
    st.sampled_from([f"_{key}-" if key in PARTS else key for key in REDACTED_KEYS]),
    affixes,
    st.sampled_from([str.lower, str.upper, str.title, lambda word: word.replace("_", "-")]),
)
forms = st.sampled_from([_as_dict, _as_pair, _as_json, _as_json_twice, _as_list, _as_bytes, _as_call])
plain = st.none() | st.integers() | st.text(alphabet="ab'\" ,:é", max_size=8)


def _nest(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return (
        st.tuples(plain, inner)
        | st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b'c", "d e"]), inner, min_size=1, max_size=2)
    )


@given(st.data(), keys, secrets, forms, st.integers(0, 400))
@example(None, "password", "a\\" + MARK + "']" + MARK, _as_list, 400)
@example(None, "token", "'" + MARK + '"\\', _as_json_twice, 400)
def test_no_secret_survives_nesting_escaping_and_truncation(
    data: st.DataObject | None, key: str, secret: str, form: Callable[[str, str], object], cut: int
) -> None:
    hidden = form(key, secret)
    nested = data.draw(st.recursive(st.just(hidden), _nest, max_leaves=4)) if data else (1, hidden)
    for text in (repr(nested), repr(nested)[:cut]):
        masked = redactor.text(text)
        assert MARK not in masked
        assert redactor.text(masked) == masked


@given(affixes, st.text(alphabet="ab:%.,;!é", min_size=1, max_size=9).map(lambda text: f"p{text}{MARK}"))
def test_no_password_survives_in_an_address(user: str, password: str) -> None:
    assert MARK not in redactor.text(repr({"url": f"amqp://{user}:{password}@shop:5672//"}))


@given(st.text(alphabet="password'\"\\,:=()[]{} \n", max_size=60) | st.text(max_size=60))
def test_any_text_is_masked_once_and_for_all(text: str) -> None:
    masked = redactor.text(text)
    assert redactor.text(masked) == masked


@given(st.text(st.sampled_from(list("pPaAsSwWoOrRdDtTkKeEnNyY_-: ='/.@{}")), max_size=40))
@example("api-KEY=7")
@example("amqp://bob:x@shop")
def test_what_raises_no_suspicion_has_nothing_to_mask(text: str) -> None:
    if not redactor.suspects(text):
        assert redactor.text(text) is text
    if redactor.text(text) is not text:
        assert redactor.suspects(text)
