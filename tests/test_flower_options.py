"""Flower's options on the command line, in the environment and in flowerconfig.py."""

import os
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import click
import pytest
from flower.options import options as flowers

from celery_monitor import cli
from celery_monitor.errors import SettingsError
from celery_monitor.settings import SETTINGS, Settings
from celery_monitor.settings.flower import OPTIONS, from_environment, from_file, translated
from tests.workers import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Without settings of the machine or a flowerconfig.py."""
    for name in [each for each in os.environ if each.startswith(("FLOWER_", "CELERY_MONITOR_"))]:
        monkeypatch.delenv(name)
    with chdir(tmp_path):
        yield tmp_path


def settings_of(*arguments: str) -> Settings:
    """The settings that serve would start with."""
    command: Any = click.Command("serve", params=cli.setting_options(), callback=lambda **given: cli._load(given))
    found: Settings = command.main([*arguments], standalone_mode=False)
    return found


def test_no_option_of_flower_is_missing() -> None:
    names = {
        option.name.replace("-", "_")
        for option in flowers._options.values()
        if str(option.group_name).endswith("flower/options.py")
    }
    assert names == OPTIONS.keys()


def test_document_lists_every_option() -> None:
    table = (ROOT / "docs/flower.md").read_text(encoding="utf-8").partition("## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert dict(rows) == {name: option.text for name, option in OPTIONS.items()}


def test_each_option_is_honoured_not_needed_or_refused() -> None:
    for name, option in OPTIONS.items():
        if option.setting is not None:
            assert option.setting in SETTINGS
            assert f"`{option.setting}`" in option.text, name
        elif name != "conf":
            assert option.text.startswith("refused: " if option.refused else "not needed: "), name


@pytest.mark.parametrize(
    ("argument", "setting", "value"),
    [
        ("--port=5556", "port", 5556),
        ("--address=127.0.0.2", "host", "127.0.0.2"),
        ("--unix_socket=/run/monitor.sock", "unix_socket", "/run/monitor.sock"),
        ("--debug", "log_level", "debug"),
        ("--debug=False", "log_level", "info"),
        ("--basic_auth=ada:secret,bob:other", "basic_auth", ("ada:admin:secret", "bob:admin:other")),
        ("--oauth2_key=id", "oidc_client_id", "id"),
        ("--oauth2-secret=s", "oidc_client_secret", "s"),
        ("--max_tasks=50000", "keep_tasks", 50_000),
        ("--max-tasks=50000", "keep_tasks", 50_000),
        ("--broker_api=http://localhost:15672/api/", "broker_api", "http://localhost:15672/api/"),
        ("--xheaders=True", "trusted_proxies", ("127.0.0.1/32",)),
        ("--xheaders=False", "trusted_proxies", ()),
        ("--purge_offline_workers=300", "purge_offline_workers", 300.0),
        ("--cookie_secret=key", "secret_key", "key"),
        ("--enable_events=False", "enable_events", False),
        ("--auth_provider=flower.views.auth.GithubLoginHandler", "oidc_provider", "github"),
        ("--url_prefix=flower", "url_prefix", "/flower"),
        ("--task_runtime_metric_buckets=1,10,60", "task_runtime_metric_buckets", (1.0, 10.0, 60.0)),
        ("--read_only", "read_only", True),
        ("--read_only=False", "read_only", False),
        ("--persistent=True", "database", Settings().database),
        ("--db=flower.db", "database", Settings().database),
    ],
)
def test_option_by_flowers_name(argument: str, setting: str, value: object) -> None:
    assert getattr(settings_of(argument), setting) == value


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("--auth=.*@example.com", "oidc_admins"),
        ("--certfile=server.crt", "proxy"),
        ("--format_task=f", "redact"),
        ("--auth_provider=my.Handler", "--oidc-provider"),
        ("--task_runtime_metric_buckets=0.3", "0.25"),
    ],
)
def test_option_that_is_refused_says_what_to_use(argument: str, instead: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(instead)):
        settings_of(argument)


def test_variables_of_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_PORT", "5557")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "ada:a,bob:b")
    monkeypatch.setenv("FLOWER_SOMETHING_ELSE", "1")
    found = settings_of()
    assert (found.port, found.basic_auth) == (5557, ("ada:admin:a", "bob:admin:b"))
    monkeypatch.setenv("CELERY_MONITOR_PORT", "5558")
    assert settings_of().port == 5558
    assert settings_of("--port", "5559").port == 5559


def test_variables_of_others_are_left_alone() -> None:
    assert from_environment({"FLOWER_POT": "1", "PORT": "1", "FLOWER_DB": "x"}) == {"db": "x"}


def test_configuration_file_is_read_as_literals(folder: Path) -> None:
    lines = [
        "import os",
        "port = 5560",
        "basic_auth = ['ada:a,b']",
        "read_only: bool = True",
        "broker_url = os.environ",
    ]
    (folder / "flowerconfig.py").write_text("\n".join(lines))
    found = settings_of()
    assert (found.port, found.basic_auth, found.read_only) == (5560, ("ada:admin:a,b",), True)


def test_another_configuration_file(folder: Path) -> None:
    (folder / "other.py").write_text("port = 5561")
    assert settings_of("--conf=other.py").port == 5561
    with pytest.raises(SettingsError, match="no file"):
        settings_of("--conf=missing.py")


@pytest.mark.parametrize(
    "line",
    [
        "basic_auth = [os.environ['AUTH']]",
        "format_task = lambda task: task",
        "def format_task(task):\n    return task",
        "port = 5000 + int('1')",
        "if True:\n    port = 5000",
        "for port in (1, 2): pass",
        "port, address = 5000, ''",
    ],
)
def test_what_is_not_a_literal_is_named_and_not_executed(folder: Path, line: str) -> None:
    (folder / "flowerconfig.py").write_text(f"open('executed', 'w')\n{line}\n")
    with pytest.raises(SettingsError, match=r"flowerconfig\.py line 2: \w+ is not a literal"):
        from_file(folder / "flowerconfig.py", must_exist=True)
    assert not (folder / "executed").exists()


def test_a_file_that_is_not_python_is_an_error(folder: Path) -> None:
    (folder / "flowerconfig.py").write_text("port =")
    with pytest.raises(SettingsError, match="cannot be read"):
        settings_of()


def test_notes_say_why_an_option_is_not_needed() -> None:
    settings, notes = translated({"persistent": "True", "conf": "x"})
    assert settings == {}
    assert notes == ["persistent of Flower is not needed: the record is always kept"]
