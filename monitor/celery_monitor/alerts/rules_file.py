"""Rules from a TOML file, one ``[[rule]]`` each. An error names the line that is wrong."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from celery_monitor.core.alerts.judging import checked
from celery_monitor.errors import InvalidInput, SettingsError
from celery_monitor.records.alert import Rule
from celery_monitor.settings.values import quoted

NOT_IN_FILE = {"source", "muted_until"}
FILE_FIELDS = tuple(name for name in Rule.__struct_fields__ if name not in NOT_IN_FILE)
_HEADER = re.compile(r"\s*\[\[\s*rule\s*\]\]")


def read_rules_file(path: str) -> list[Rule]:
    """The rules of a file, in order. Raises SettingsError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"rules: cannot read {quoted(path)}: {reason}") from None
    if unknown := table.keys() - {"rule"}:
        raise SettingsError(f"rules: {file}: there is no {min(unknown)!r}; write [[rule]]")
    given = table.get("rule", [])
    if not isinstance(given, list):
        raise SettingsError(f"rules: {file}: write [[rule]], with two brackets")
    found = [_rule(file, text, number, each) for number, each in enumerate(given)]
    for number, rule in enumerate(found):
        if any(rule.name == other.name for other in found[:number]):
            raise _wrong(file, text, number, "name", f"there is another rule {rule.name!r}")
    return found


def _rule(file: Path, text: str, number: int, given: dict[str, object]) -> Rule:
    for name in given:
        if name not in FILE_FIELDS:
            raise _wrong(file, text, number, name, f"there is no {name!r}; use one of {', '.join(FILE_FIELDS)}")
    try:
        return checked(msgspec.convert({**given, "source": "file"}, Rule))
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise _wrong(file, text, number, place.rstrip("`"), message) from None
    except InvalidInput as error:
        raise _wrong(file, text, number, str(error.detail.get("field", "")), error.message) from None


def _wrong(file: Path, text: str, number: int, field: str, message: str) -> SettingsError:
    """With the line of the field, else that of the rule."""
    lines = list(_lines(text, number))
    line = next((at for at, each in lines if re.match(rf'\s*"?{re.escape(field)}"?\s*=', each)), lines[0][0])
    return SettingsError(f"rules: {file}, line {line}: {message}")


def _lines(text: str, number: int) -> Iterator[tuple[int, str]]:
    """The lines of a rule with their numbers, from its header on."""
    header = -1
    for at, line in enumerate(text.splitlines(), 1):
        header += _HEADER.match(line) is not None
        if header == number:
            yield at, line
