"""Applications of all kinds, read by a process of its own; and what a person reads of one that cannot be loaded."""

import ssl
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from celery_monitor.brokers.application import read_application
from celery_monitor.brokers.connection import app_for, with_application
from celery_monitor.brokers.results import result_backend
from celery_monitor.errors import SettingsError
from celery_monitor.records.application import Application
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.workers import wait_for

ODD = """
import os, ssl, subprocess, sys, threading
from datetime import timedelta
from celery import Celery
from kombu import Exchange, Queue

print("hello from the project")
sys.stdout.flush()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("pids", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
threading.Thread(target=threading.Event().wait).start()  # it never ends

class Bad:
    def __repr__(self):
        raise RuntimeError("no words")

app = Celery("odd", broker=["amqp://a:s3cret@one//shop", "amqp://a:s3cret@two//shop"])
app.conf.update(
    broker_write_url="amqp://w:s3cret@one//shop",
    broker_use_ssl={"ca_certs": "/certs/ca.pem", "cert_reqs": ssl.CERT_REQUIRED},
    broker_transport_options={"client_properties": {"name": "shop"}, "on_connect": print, 7: "seven", "keep": {4: 60}},
    redis_backend_use_ssl={"ssl_cert_reqs": ssl.CERT_NONE},
    result_backend_transport_options={"retry_policy": {"timeout": 5.5}, "wait": timedelta(seconds=9)},
    accept_content=["json", "msgpack"],
    task_queues=[Queue("mail", Exchange("shop")), Queue("stock")],
    task_routes=[lambda *arguments: None],
    event_exchange="shopev",
    control_exchange="shopctl",
    timezone="Asia/Tokyo",
    beat_schedule={
        "good": {"task": "t", "schedule": timedelta(seconds=0.125), "options": {"queue": Queue("mail")}},
        "bad": {"task": "t", "schedule": Bad()},
        "worse": {"task": "t", "schedule": 5.0, "args": 1},
        "half \\ud800": {"task": "t", "schedule": 5.0},
    },
)

@app.on_after_finalize.connect
def add(sender, **_):
    sender.add_periodic_task(30.0, sender.signature("late"), name="late")
"""
TLS = """
import ssl
from celery import Celery
app = Celery("tls", broker="rediss://one/1")
app.conf.broker_use_ssl = {"context": ssl.create_default_context()}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which we are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, name: str, text: str) -> str:
    (project / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def test_application_is_read_whatever_it_holds_and_leaves_nothing(project: Path) -> None:
    before = set(sys.modules)
    application = read_application(write(project, "odd", ODD))
    assert "odd" not in set(sys.modules) - before
    for pid in (project / "pids").read_text().split():
        wait_for(partial(gone, pid), what=f"the end of {pid}")
    both = "amqp://a:s3cret@one//shop;amqp://a:s3cret@two//shop"
    assert (application.broker_read_url, application.broker_write_url) == (both, "amqp://w:s3cret@one//shop")
    assert application.queues == ("mail", "stock")
    assert application.unusable == {"broker_transport_options.on_connect": "it is the function print"}
    app = app_for(Broker("default", both), Settings(application=application))
    assert app.conf.broker_use_ssl == {"ca_certs": "/certs/ca.pem", "cert_reqs": ssl.CERT_REQUIRED}
    options = {"client_properties": {"name": "shop"}, "7": "seven", "keep": {4: 60}}
    assert app.conf.broker_transport_options == options
    assert app.conf.redis_backend_use_ssl["ssl_cert_reqs"] is ssl.CERT_NONE
    assert app.conf.result_backend_transport_options["wait"] == timedelta(seconds=9)
    assert (app.conf.event_exchange, app.conf.control_exchange) == ("shopev", "shopctl")
    assert app.conf.accept_content == ["json", "msgpack"]
    assert str(app.timezone) == "Asia/Tokyo"
    assert app.connection_for_write().userid == "w"
    assert app.connection_for_read().userid == "a"
    entries = {entry.name: entry for entry in application.entries}
    assert entries.keys() == {"good", "late", "half \ufffd"}
    assert (entries["good"].when, entries["good"].queue) == (timedelta(seconds=0.125), "mail")
    assert {each.name: each.reason for each in application.unread} == {
        "bad": "RuntimeError: no words",
        "worse": "its args are of type int, not a list",
    }


def gone(pid: str) -> bool:
    """Ended, though nobody may have waited for it."""
    try:
        return ") Z " in Path("/proc", pid, "stat").read_text()
    except OSError:
        return True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' (.*broken.py, line 1)"),
        ("x = (", r"broken.py, line 1: '\(' was never closed"),
        ("import sys; sys.exit('usage: shop')", "importing it raised SystemExit: usage: shop"),
        ("import os; print('last words'); os._exit(3)", "reading it ended without an answer"),
        ("value = 7", "broken has no Celery application"),
        (
            "raise ValueError('redis://ann:s3cret@h/0')",
            r"ValueError: .*redis://\*\*@h/0 \(.*broken.py, line 1\)",
        ),
        ("from celery import Celery\napp = Celery()\napp.config_from_object('nowhere')", "No module named 'nowhere'"),
        (
            "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'no.settings'\nfrom celery import Celery\n"
            "app = Celery()\napp.config_from_object('django.conf:settings', namespace='CELERY')",
            "ModuleNotFoundError: No module named 'no'",
        ),
    ],
)
def test_application_that_cannot_be_loaded_is_one_line(project: Path, text: str, words: str) -> None:
    name = write(project, "broken", text)
    with pytest.raises(SettingsError, match=words) as caught:
        read_application(name)
    assert caught.value.message.startswith("app 'broken' cannot be loaded: ")
    assert caught.value.message.endswith("as for celery -A")
    assert "\n" not in caught.value.message
    assert "s3cret" not in caught.value.message


def test_application_that_never_ends_is_given_up(project: Path) -> None:
    name = write(project, "slow", "import os, time\nopen('pids', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    began = time.monotonic()
    with pytest.raises(SettingsError, match="did not end within 3 s"):
        read_application(name, seconds=3)
    assert time.monotonic() - began < 60
    assert gone((project / "pids").read_text())


def test_connection_is_not_made_with_less_security_than_the_applications(project: Path) -> None:
    settings = with_application(Settings(app=write(project, "tls", TLS)))
    [broker] = settings.broker
    with pytest.raises(SettingsError, match="broker_use_ssl of tls cannot be carried over: it is an object of ssl"):
        app_for(broker, settings)
    given = Broker("default", "rediss://one/1?ssl_cert_reqs=required")
    assert app_for(given, settings).connection_for_read().transport_cls == "rediss"


def test_brokers_of_the_environment_do_not_go_before_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(name, "redis://wrong:6391/3")
    app = app_for(Broker("shop", "redis://right:6392/4"), Settings())
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert connection.hostname == "right"


@pytest.mark.parametrize(
    ("backend", "kind", "address"),
    [
        ("rpc://", "unreadable", "rpc://"),
        ("cache+memcached://ann:s3cret@h/", "unreadable", "cache+memcached://ann:**@h/"),
        ("mongodb://ann:s3cret@h/db", "unreadable", "mongodb://ann:**@h/db"),
        ("django-db", "unreadable", "django-db"),
        ("db+postgresql://ann:s3cret@h/db", "sql", "db+postgresql://ann:**@h/db"),
        ("rediss://:s3cret@h/0", "redis", "rediss://:**@h/0"),
        ("redis", "redis", "redis"),
        ("disabled://", "none", ""),
    ],
)
def test_result_backend_is_read_or_reported_not_to_be(backend: str, kind: str, address: str) -> None:
    conf: dict[str, object] = {"result_backend": backend}
    application = Application(conf=conf, broker_read_url="redis://h", broker_write_url="redis://h")
    found = result_backend(Broker("default", "redis://h"), Settings(application=application))
    assert (found.kind, found.address) == (kind, address)
    assert (found.reason is not None) is (kind == "unreadable")
    assert "s3cret" not in f"{found.reason}"
