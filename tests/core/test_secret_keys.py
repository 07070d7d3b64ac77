"""Keys that name a secret are found wherever they stand; ordinary words that contain one are not."""

import pytest

from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.untrusted import SECRET_KEYS, key_pattern

SECRETS = (
    "auth", "Auth", "AUTH", "userAuth", "authToken", "x-auth", "auth2", "auth.user", "basic_auth", "oauth", "http_auth",
    "pass", "db_pass", "dbpass", "DB_PASS", "dbPass", "DBPass", "smtp-pass", "passphrase", "passcode", "passkey",
    "pwd", "MYSQL_PWD", "user_pwd", "bearer", "bearer_value", "session", "session_id", "sessionId", "sessionid",
    "JSESSIONID", "session_key", "jwt", "my-jwt", "jwtValue", "dsn", "SENTRY_DSN", "sentryDsn", "password2",
)  # fmt: skip
HARMLESS = (
    "author", "authority", "authored", "co_author", "passenger", "passed", "passive", "compass", "bypass", "trespass",
    "session_count", "sessionCount", "session_timeout", "sessions", "obsession", "auth_type", "auth_method",
    "pass_rate", "passes", "dsnx", "keyboard", "bearers",
)  # fmt: skip
redactor = Redactor(SECRET_KEYS)


def _forms(key: str) -> tuple[str, ...]:
    return (
        repr({key: "S3CR3T", "n": 1}),
        f"login({key}='S3CR3T', n=1)",
        f"(('{key}', 'S3CR3T'),)",
        f'{{"body": "{{\\"{key}\\": \\"S3CR3T\\"}}"}}',
        f"('https://shop/?{key}=S3CR3T&b=1',)",
        repr(f"first\n{key}=S3CR3T"),
    )


@pytest.mark.parametrize("key", SECRETS)
def test_the_value_of_a_key_that_names_a_secret_is_masked_in_every_form(key: str) -> None:
    for text in _forms(key):
        shown = redactor.text(text)
        assert "S3CR3T" not in shown, text
        assert redactor.text(shown) == shown


@pytest.mark.parametrize("key", HARMLESS)
def test_the_value_of_an_ordinary_word_is_kept(key: str) -> None:
    for text in _forms(key):
        assert redactor.text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "    with Session() as session:\n        session.add(order)\n",
        "    session.get(url='https://shop/')\n",
        'File "/srv/shop/session.py", line 3, in pay\n    pass\n',
        "SessionError: the shop is closed",
        "AuthFailed: ask the shop",
        "KeyError: 'session'",
    ],
)
def test_code_and_names_of_errors_in_a_traceback_are_kept(text: str) -> None:
    assert redactor.text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("('https://S3CR3T@github.com/x',)", "('https://***@github.com/x',)"),
        ("('https://S3CR3T@h:5432/x',)", "('https://***@h:5432/x',)"),
        ("('https://ghp_0123456789abcdef0123:x@github.com',)", "('https://***:***@github.com',)"),
        ("('http://shop/?to=ann@shop',)", "('http://shop/?to=ann@shop',)"),
        ("('Bearer S3CR3T.S3CR3T',)", "('Bearer ***',)"),
    ],
)
def test_user_parts_of_addresses_and_bearer_tokens_are_masked(text: str, shown: str) -> None:
    assert redactor.text(text) == shown
    assert redactor.text(shown) == shown


def test_every_text_in_which_a_key_is_found_is_a_suspect() -> None:
    pattern = key_pattern(SECRET_KEYS)
    for key in SECRETS:
        for text in _forms(key):
            assert pattern.search(text), text
            assert redactor.suspects(text), text
