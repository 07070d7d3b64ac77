"""The dashboard inside other applications, and as a server's factory makes it: the code of docs/application.md."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path

import httpx2
import pytest

from celery_monitor.store.engine import open_store
from tests.factories import make_id
from tests.servers import free_port, wait_for_port
from tests.web import shop
from tests.web.test_live import Site, receive, receive_until, received
from tests.workers import ROOT

DOCUMENT = (ROOT / "docs" / "application.md").read_text(encoding="utf-8")
CODE = {
    name: next(each for each in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if f"from {name}" in each)
    for name in ("fastapi", "django")
}
DJANGO_SETTINGS = """
SECRET_KEY = "of the test"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "site_urls"
"""
DJANGO_URLS = """
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("own", lambda request: HttpResponse("own page"))]
"""
OWN_ROUTE = '\n@application.get("/own")\ndef own():\n    return "own page"\n'
THREADS = """
import threading
from starlette.testclient import TestClient
from asgi import application
names = lambda: [each.name for each in threading.enumerate() if each.name == "jobs"]
before = names()
with TestClient(application):
    inside = names()
print(before, inside, names())
"""


def write_project(framework: str, directory: Path) -> None:
    code = CODE[framework] + (OWN_ROUTE if framework == "fastapi" else "")
    (directory / "asgi.py").write_text(code, encoding="utf-8")
    (directory / "site_settings.py").write_text(DJANGO_SETTINGS, encoding="utf-8")
    (directory / "site_urls.py").write_text(DJANGO_URLS, encoding="utf-8")


def environ(database: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_MONITOR_")}
    ours = {"CELERY_MONITOR_DATABASE": database, "CELERY_MONITOR_BROKER": "shop=redis://127.0.0.1:1/3"}
    return others | ours | {"PYTHONPATH": str(ROOT)}


@contextmanager
def serving(directory: Path, database: str, *command: str, prefix: str = "/monitor") -> Iterator[Site]:
    """uvicorn in ``directory``, as its command line starts it."""
    port = free_port()
    with closing(open_store(database)) as store:
        shop.fill(store)
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *command, "--port", str(port)], cwd=directory, env=environ(database)
        )
        try:
            wait_for_port(port)
            yield Site(f"http://127.0.0.1:{port}", store, prefix)
        finally:
            server.terminate()
            server.wait(60)


def check_dashboard(site: Site) -> None:
    """Pages, what they load, the API, and a live page."""
    page = httpx2.get(f"{site.base}{site.prefix}/tasks", timeout=60)
    assert page.status_code == 200
    assert shop.SUCCEEDED in page.text
    addresses = {unescape(each) for each in re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text)}
    assert len(addresses) > 10
    for address in addresses:
        assert address.startswith(f"{site.prefix}/")
        if "/static/" in address:
            assert httpx2.get(f"{site.base}{address}", timeout=60).status_code == 200
    assert (
        httpx2.get(f"{site.base}{site.prefix}/api/v1/tasks/{shop.SUCCEEDED}", timeout=60).json()["state"] == "SUCCESS"
    )
    form = {"csrf_token": "none"}
    refused = httpx2.post(f"{site.base}{site.prefix}/views/save", data=form, headers={"Origin": "http://x"}, timeout=60)
    assert refused.status_code == 403
    with site.look("/tasks") as browser:
        assert receive(browser)["rows"]["tasks"]["order"]
        site.write(received(make_id(801)))
        receive_until(browser, lambda message: make_id(801) in str(message.get("rows")))


@pytest.mark.parametrize("framework", CODE)
def test_it_is_mounted_as_the_document_says(framework: str, sqlite_url: str, tmp_path: Path) -> None:
    write_project(framework, tmp_path)
    with serving(tmp_path, sqlite_url, "asgi:application", "--no-proxy-headers") as site:
        assert "own page" in httpx2.get(f"{site.base}/own", timeout=60).text
        check_dashboard(site)


@pytest.mark.parametrize("framework", CODE)
def test_jobs_run_with_the_lifespan_of_the_application_around(framework: str, sqlite_url: str, tmp_path: Path) -> None:
    write_project(framework, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        cwd=tmp_path,
        env=environ(sqlite_url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[] ['jobs'] []\n", done.stderr


def test_a_server_makes_it_by_its_factory(sqlite_url: str, tmp_path: Path) -> None:
    command = re.search(r"^uvicorn (--factory \S+)", DOCUMENT, re.MULTILINE)
    assert command
    with serving(tmp_path, sqlite_url, *command[1].split(), prefix="") as site:
        check_dashboard(site)
        assert [each["cluster"] for each in httpx2.get(f"{site.base}/api/v1/health", timeout=60).json()["items"]] == [
            "shop"
        ]


def test_a_wrong_variable_ends_the_factory_with_its_name(tmp_path: Path) -> None:
    code = "from celery_monitor.web.app import create_app; create_app()"
    wrong = environ(f"sqlite:///{tmp_path}/x.db") | {"CELERY_MONITOR_PROT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no setting 'prot'; did you mean port?" in done.stderr


def test_another_machine_is_refused_without_users(sqlite_url: str, tmp_path: Path) -> None:
    """Whatever the server listens on: the setting ``host`` is not what it was started with."""
    with serving(tmp_path, sqlite_url, "--factory", "celery_monitor.web.app:create_app", prefix="") as site:
        answer = httpx2.get(f"{site.base}/tasks", headers={"X-Forwarded-For": "192.0.2.1"}, timeout=60)
        assert (answer.status_code, "only this machine" in answer.text) == (403, True)
