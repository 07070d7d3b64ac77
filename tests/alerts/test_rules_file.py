"""The rules file: what is in it, and the line of what is wrong."""

from pathlib import Path

import pytest

from celery_monitor.alerts.rules_file import read_rules_file
from celery_monitor.errors import SettingsError
from celery_monitor.records.alert import Severity
from celery_monitor.serve import prepare_store
from celery_monitor.settings import Settings, load
from celery_monitor.settings.values import NamedUrl

RULES = """\
# of the payments team
[[rule]]
name = "Payments fail"
kind = "failure share"
scope = "name:shop.pay.*"
bound = 0.05
for_seconds = 120
severity = "critical"
resolve = false

[[rule]]
name = "Deep queue"
kind = "queue depth"
bound = 500
"""


def write(folder: Path, text: str) -> str:
    file = folder / "rules.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_rules_are_read_with_all_their_fields(tmp_path: Path) -> None:
    first, second = read_rules_file(write(tmp_path, RULES))
    assert (first.name, first.kind, first.scope) == ("Payments fail", "failure share", "name:shop.pay.*")
    assert (first.bound, first.for_seconds, first.severity, first.resolve) == (0.05, 120.0, Severity.CRITICAL, False)
    assert (second.bound, second.source) == (500.0, "file")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('kind = "queue depth"', 'kind = "queue death"', 13, "'queue death' is not a kind of rule; use one of"),
        ("bound = 500", "bond = 500", 14, "there is no 'bond'; use one of name, kind, bound"),
        ("bound = 0.05", 'bound = "much"', 6, "Expected `float | null`, got `str`"),
        ('severity = "critical"', 'severity = "dire"', 8, "Invalid enum value 'dire'"),
        ('scope = "name:shop.pay.*"', 'scope = "queue:shop"', 5, "queue: does not apply here"),
        ('name = "Payments fail"\n', "", 2, "missing required field `name`"),
        ('name = "Deep queue"', 'name = "Payments fail"', 12, "there is another rule 'Payments fail'"),
        ("bound = 500", "muted_until = 9", 14, "there is no 'muted_until'"),
    ],
)
def test_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_rules_file(write(tmp_path, RULES.replace(old, new)))
    assert f"rules.toml, line {line}: " in caught.value.message
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]\n", "line 1"),
        ("[rule]\nname = 'a'\n", "two brackets"),
        ("[[rules]]\n", "there is no 'rules'; write [[rule]]"),
    ],
)
def test_what_is_no_rules_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_rules_file(write(tmp_path, text))
    assert says in caught.value.message


def test_mistake_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/record.db"
    with pytest.raises(SettingsError, match="line 14"):
        prepare_store(Settings(database=database, rules=write(tmp_path, RULES.replace("bound = 500", "bond = 500"))))
    assert not (tmp_path / "record.db").exists()
    with pytest.raises(SettingsError, match="cannot read"):
        prepare_store(Settings(database=database, rules=f"{tmp_path}/missing.toml"))


def test_ping_of_an_entry_has_any_name_and_a_url() -> None:
    given = load({"ping_entry": ("every = 10 s=https://hc.example.com/a=b",)}, {})
    assert given.ping_entry == (NamedUrl("every = 10 s", "https://hc.example.com/a=b"),)
    for wrong in ("nightly", "=http://hc.example.com/a", "nightly=ftp://hc.example.com"):
        with pytest.raises(SettingsError, match="ping_entry"):
            load({"ping_entry": (wrong,)}, {})
