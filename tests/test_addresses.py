"""What can never work ends at once, in one line that names no secret; by the command line, as a stranger types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import assume, example, given
from hypothesis import strategies as st

from celery_monitor.addresses import masked, without_password
from celery_monitor.cli import celery_command, main
from celery_monitor.errors import MonitorError
from celery_monitor.settings.values import parse_broker
from tests.test_cli import call, environ
from tests.workers import ROOT

SECRET = "S3CRETx"
GOOD = ("--broker", "redis://127.0.0.1:1/3")
BROKEN_BROKERS = [
    (f"redis://:{SECRET}[@h/0", "percent-encode special characters in its password"),
    (f"redis://:{SECRET}/x@h/0", "the port must be a number from 1 to 65535"),
    (f"redis:/:{SECRET}@h/0", "not a URL; for example redis://localhost:6379/0"),
    (f":{SECRET}@h/0", "not a URL"),
    (f"shop=redis:/:{SECRET}@h/0", "shop: not a URL"),
    (f"a shop=redis://:{SECRET}@h/0", "letters, digits, - and _ only"),
    (f"redis://:{SECRET}@h/notanumber", "the database of a Redis is a number"),
    (f"redis://:{SECRET}@h:99999/0", "the port must be a number from 1 to 65535"),
    (f"amqp://ann:{SECRET}@h:0//", "the port must be a number from 1 to 65535"),
    (f"redis://:{SECRET}", "the port must be a number from 1 to 65535"),
    (f"redis://h/0;redis://:{SECRET}@h:x/0", "the port must be a number from 1 to 65535"),
    (f"rediss://:{SECRET}@h/0?ssl_cert_reqs=bogus", "ssl_cert_reqs must be required, optional or none"),
    (f"redis+socket://:{SECRET}@/run/r.sock?virtual_host=shop", "the database of a Redis is a number"),
    (f"foo://:{SECRET}@h", "there is no transport 'foo'; use one of amqp"),
    (f"rdis://:{SECRET}@h", "did you mean redis://?"),
    (f"kafka://:{SECRET}@h", "run pip install 'kombu[confluentkafka]'"),
    (f"slmq://:{SECRET}@h", "brokers of the transport slmq are not read"),
    (f"zookeeper://:{SECRET}@h", "run pip install 'kombu[zookeeper]'"),
    (f"my.own:Transport://:{SECRET}@h", "my.own:Transport: kombu has no such transport"),
    ("memory://", "no other process can be seen there"),
]
BROKEN_OPTIONS = [
    (("--database", f"postgresql://u:{SECRET}@h:abc/x"), "database: the port must be"),
    (("--database", f"postgresql://u:{SECRET}@h:65536/x"), "database: the port must be"),
    (("--database", f"postgresql+asyncpg://u:{SECRET}@h/x"), "'postgresql+asyncpg' is not supported"),
    (("--database", f"foo://u:{SECRET}@h/x"), "'foo' is not supported"),
    (("--database", "record.db"), "database: not a URL; use sqlite:///file.db"),
    (("--broker-options", f'{{"password": "{SECRET}"'), "broker_options: not a JSON object (Input data was truncated)"),
    (("--broker-options", "[3]"), "not a JSON object (Expected `object`, got `array`)"),
    (("--broker-options", "[" * 100_000), "not a JSON object"),
    (("--broker-options", "\udcff"), "not a JSON object"),
    (("--broker-options", f'{{"visibility_timeout": "{SECRET}"}}'), "visibility_timeout: expected `float`, got `str`"),
    (("--broker-options", '{"priority_steps": 3}'), "broker_options: priority_steps: expected `array`, got `int`"),
    (("--broker-options", '{"global_keyprefix": 5}'), "global_keyprefix: expected `str`, got `int`"),
    (("--broker-options", '{"socket_timeout": 0}'), "socket_timeout: expected `float` > 0.0"),
    (("--broker-options", '{"max_connections": 0}'), "max_connections: expected `int` >= 1"),
    (("--broker-options", f'{{"queue_order_strategy": "{SECRET}"}}'), "queue_order_strategy: expected `str` matching"),
    (("--broker-api", f"foo:/{SECRET}@x"), "broker_api: not an http:// or https:// URL"),
    (("--broker-api", f"http://u:{SECRET}[@x"), "broker_api: the address cannot be parsed"),
    (("--redbeat", f"amqp://u:{SECRET}@h"), "redbeat: default: RedBeat keeps its entries in Redis"),
    (("--redbeat", f"kafka://:{SECRET}@h"), "redbeat: default: RedBeat keeps its entries in Redis"),
    (("--beat-database", f"foo://u:{SECRET}@h"), "beat_database: default: 'foo' is not supported"),
    (
        ("--result-backend", f"memcached://u:{SECRET}@h"),
        "result_backend: default: only Redis and SQL databases are read",
    ),
    (("--result-backend", f"db+foo://u:{SECRET}@h/x"), "this kind of database is not read; use one of db+sqlite://"),
    (("--result-backend", f"db+mysql+pymysql://u:{SECRET}@h:99999/x"), "result_backend: default: the port must be"),
    (("--result-backend", f"redis://u:{SECRET}@h/x"), "result_backend: default: the database of a Redis is a number"),
    (("--source", "amqp"), "source amqp cannot read from redis"),
    (("--source", "pigeon"), "source: 'pigeon' is not one of auto, kombu, redis, amqp, queue"),
    (("--port", f"redis://:{SECRET}@h"), "port: 'redis://**@h' is not an integer"),
    (("--port", "70000"), "70000 is not a port; choose a --port"),
    (("--sample-seconds", "1e300"), "too large"),
    (("--keep-tasks", "0"), "keep_tasks: 0 is too few; write 1 or more"),
    (("--keep-tasks", "9" * 40), "too large"),
    (("--url-prefix", "shop pages"), "url_prefix: 'shop pages' is not a path"),
    (("--node-id", ""), "node_id: '' is not a name"),
    (("--shard", "1/2"), "there is no option --shard; one receiver serves a whole broker"),
    (("--read-only=maybe",), "--read-only"),
    (("--log-level", "loud"), "log_level: 'loud' is not one of debug"),
    (("--brokr", f"redis://:{SECRET}@h"), "there is no option --brokr; did you mean --broker?"),
    ((f"redis://:{SECRET}@h",), "Got unexpected extra argument (redis://**@h)"),
    (("--config", "nowhere.toml"), "cannot read nowhere.toml"),
]


def one_line(code: int, output: str) -> str:
    """The only line there is, of a program that refused what it was given."""
    assert code == 2, output
    assert "S3CRET" not in output
    (line,) = output.splitlines()
    return line


@pytest.mark.parametrize(("url", "words"), BROKEN_BROKERS)
def test_a_broker_that_can_never_work_ends_every_command_at_once(url: str, words: str) -> None:
    for command in ("serve", "receive", "web", "doctor"):
        result = CliRunner().invoke(main, [command, "--broker", url])
        assert words in one_line(result.exit_code, result.output), command
    if "=" not in url.partition("://")[0]:
        result = CliRunner().invoke(main, ["demo", "--broker", url])
        assert words.removeprefix("shop: ") in one_line(result.exit_code, result.output)


@pytest.mark.parametrize(("options", "words"), BROKEN_OPTIONS)
def test_a_value_that_can_never_work_ends_at_once(options: tuple[str, ...], words: str) -> None:
    for command in ("serve", "doctor"):
        result = CliRunner().invoke(main, [command, *GOOD, *options])
        assert words in one_line(result.exit_code, result.output), command
    result = CliRunner().invoke(celery_command, [*GOOD, *options], standalone_mode=True)
    assert words in one_line(result.exit_code, result.output)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = = 3", "is not TOML"),
        ("prot = 3", "there is no setting 'prot'; did you mean port?"),
        ("port = {a = 3}", "port: a dict is not a value"),
        ("database = ['a']", "database: a list is not a value"),
        ("broker = [3.5, true]", "broker: default: not a URL"),
        (f"[broker_options]\nread_timeout = '{SECRET}'", "broker_options: read_timeout: expected `float | null`"),
        (f"[broker]\nshop = 'redis://:{SECRET}@h'", "broker: a dict is not a value"),
    ],
)
def test_a_file_that_is_no_settings_ends_at_once(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["serve", "--config", str(file)])
    assert words in one_line(result.exit_code, result.output)


def test_the_environment_is_held_to_the_same() -> None:
    for name, value, words in [
        ("BROKER", f"redis://:{SECRET}@h:x/0", "the port must be a number"),
        ("BROKR", f"redis://:{SECRET}@h", "there is no setting 'brokr'; did you mean broker?"),
    ]:
        result = CliRunner().invoke(main, ["serve"], env={f"CELERY_MONITOR_{name}": value})
        assert words in one_line(result.exit_code, result.output)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--broker", f"redis://:{SECRET}[@h/0"), "the address cannot be parsed"),
        (("receive", "--broker", f"redis://:{SECRET}@h/0?pass={SECRET}"), "after the ? of the address"),
        (("serve", "--broker", f"qpid://:{SECRET}@h"), "qpid needs a package that is not installed"),
        (("web", "--broker", f"sentinel://:{SECRET}@h"), "Sentinel needs the name of the master"),
        (("receive", *GOOD, "--database", "sqlite:////nowhere/x.db"), "check that the folder exists"),
        (("receive", *GOOD, "--database", f"sqlite:///{ROOT}/README.md"), "file is not a database"),
        (("receive", *GOOD, "--database", f"sqlite:///{ROOT}"), "unable to open database file"),
        (("web", "--host", f"{'a' * 70}.b", "--basic-auth", f"ann:{SECRET}"), "cannot listen on"),
    ],
)
def test_the_program_itself_ends_in_one_line(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = call(*arguments, directory=tmp_path)
    assert words in one_line(done.returncode, done.stdout + done.stderr)
    assert {each.name for each in tmp_path.iterdir()} <= {"celery-monitor.db"}


def test_a_password_stays_hidden_where_it_is_right_and_the_broker_is_down(tmp_path: Path) -> None:
    done = call("doctor", "--json", "--broker", f"shop=redis://:{SECRET}@127.0.0.1:1/0", directory=tmp_path)
    assert done.returncode == 1
    assert "S3CRET" not in done.stdout + done.stderr
    assert {each["address"] for each in json.loads(done.stdout)["findings"]} >= {"redis://:**@127.0.0.1:1/0"}


@pytest.mark.parametrize("program", ["celery", "celery_monitor"])
def test_an_applications_own_address_is_held_to_the_same(program: str, tmp_path: Path) -> None:
    text = f"from celery import Celery\napp = Celery('shop', broker='redis://:{SECRET}[@h/0')\n"
    (tmp_path / "shop.py").write_text(text, encoding="utf-8")
    arguments = ["-A", "shop", "monitor"] if program == "celery" else ["serve", "-A", "shop"]
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=60, check=False)
    assert "check its broker_url" in one_line(done.returncode, done.stdout + done.stderr)


BROKEN = st.sampled_from(
    [
        "redis://:{}@h:port/0",
        "redis://ann:{}@h/notanumber",
        "redis://:{}@[h/0",
        "redis://:{}",
        "redis:/:{}@h/0",
        "redis/:{}@h",
        "redis//:{}@h/0",
        ":{}@h/0",
        "{}@h/0",
        "//:{}@h",
        "shop=redis:/:{}@h/0",
        "shop=:{}@h",
        "kafka://:{}@h",
        "redis://h/0?password={}",
        "redis://h/0;:{}@i/0",
        "amqp://ann:{}@:99999//",
    ]
)
TAILS = st.text(alphabet="[]@:/?#%=&;. \n'\"é\x00", max_size=6)


@given(template=BROKEN, head=TAILS, tail=TAILS)
@example(template="redis://:{}@h", head="12/", tail="")
@example(template="{}@h/0", head="", tail="=")
@example(template="redis://:{}@h", head=";", tail="://:")
def test_no_broken_address_shows_its_secret(template: str, head: str, tail: str) -> None:
    if "@" not in template.partition("{}")[2]:  # behind an @ a host is meant
        assume("@" not in head or "?" in template)
    url = template.format(f"{head}S3CRET{tail}")
    assert "S3CRET" not in complaint(url)
    assert "S3CRET" not in without_password(url)


def complaint(url: str) -> str:
    """What is said of an address; nothing where it may be one."""
    try:
        parse_broker(url)
    except MonitorError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Error 111 connecting to redis://ann:{SECRET}@h:6379/0.", "Error 111 connecting to redis://**@h:6379/0."),
        (f"postgresql://u:{SECRET}@h/x?sslpassword={SECRET}", "postgresql://**@h/x?sslpassword=**"),
        (f"redis:/:{SECRET}@h/0", "redis:/**@h/0"),
        ("orders@vm is down", "orders@vm is down"),
    ],
)
def test_an_address_within_a_text_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_log_line_and_its_traceback_show_no_password(tmp_path: Path) -> None:
    program = (
        "import logging; from celery_monitor.supervise import configure_logging; configure_logging('info')\n"
        f"try: raise ValueError('redis://:{SECRET}@h')\n"
        f"except ValueError: logging.exception('no redis://:{SECRET}@h here')\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    result = call_python(tmp_path)
    assert "S3CRET" not in result
    assert "ValueError: redis://**@h" in result


def call_python(directory: Path) -> str:
    """What the program in this folder wrote to standard error."""
    command = [sys.executable, "program.py"]
    return subprocess.run(
        command, cwd=directory, env=environ(), capture_output=True, text=True, timeout=60, check=True
    ).stderr
