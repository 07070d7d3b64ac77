"""Writes docs/settings.md, filters.md and actions.md from the tables that the program itself uses: ``make docs``."""

from pathlib import Path

from celery_monitor.control import COMMANDS, REQUIRED_ROLE
from celery_monitor.control.commands import Command, summary_of
from celery_monitor.core.filters.values import FIELDS, STATES_BY_WORD
from celery_monitor.settings import ENVIRONMENT_PREFIX, SETTINGS, Settings

HERE = Path(__file__).parent
SETTINGS_INTRODUCTION = """\
# Settings

Written by `make docs` from the table in `monitor/celery_monitor/settings.py`.

A setting is taken from the command line, else from the environment, else from the TOML file given with
`--config FILE`, else it has its default. A name that does not exist is an error, wherever it stands.

```toml
# monitor.toml: the names are those below, in lower case
broker = ["shop=redis://localhost:6379/0", "mail=amqp://localhost"]
database = "postgresql://monitor@localhost/monitor"
sample_seconds = 5
```

In the environment, a setting that may be given several times takes its values separated by spaces:
`CELERY_MONITOR_BROKER="shop=redis://localhost:6379/0 mail=amqp://localhost"`.
"""

FILTERS_INTRODUCTION = """\
# The filter language

Written by `make docs`; the tables come from `monitor/celery_monitor/core/filters/values.py`.

The same text works in the search field, in the address of a page (`/tasks?q=...`) and in the API
(`/api/v1/tasks?q=...`):

```
state:failed -name:report.* (queue:payments OR queue:mail) runtime:>5s received:>-1h "connection reset"
```

| write | for |
|---|---|
| `field:value` | tasks whose field is that value |
| `one two` | both must hold |
| `one OR two` | either holds; `OR` binds less tightly than the space |
| `(one OR two) three` | parentheses group |
| `-one` | it must not hold |
| `pay*` | `*` stands for any text, outside quotes |
| `"two words"` | quotes keep a value together; inside, `\\"` and `\\\\` are a quote and a backslash |
| `runtime:>5s` | comparisons `>` `>=` `<` `<=` on numbers, durations and times |
| `wait:100ms..2s` | a range, both ends included; either end may be left out |
| `received:>-1h` | a time counted back from now |
| `field:""` | what is not known |
| `connection` | a bare word searches name, id, args and exception |

Durations take `ms`, `s`, `m`, `h` and `d`. Times are UTC: `2026-11-01`, `2026-11-01T08:30`, `-15m`.

An unknown field or a value that cannot be read is an error that names the column and lists what is known. A filter
that is wrong never matches everything.
"""


MARKS = """\
`retried:` is `yes`, `no` or one of these words: the state of the newest task as which a person retried it.
`retried:""` finds tasks whose retry was sent and has not been seen yet. A task that was sent again under its own id is
no other task, and Celery's own retries are counted by `retries`.

`group:open` finds tasks of failure groups that are open or regressed; `group:regressed`, `group:resolved` and
`group:muted` those of groups in that state. *Failed* in the navigation counts failures that still need somebody:
`state:failed retried:no -group:muted -group:resolved`.
"""

ACTIONS_INTRODUCTION = """\
# Actions

Written by `make docs`; the table comes from the commands in `monitor/celery_monitor/control/`.

Everything that changes a cluster passes one door: it is refused to who may not do it, refused to everybody on a
read-only dashboard, and written down on `/actions` with its outcome, denials too.

An outcome is `done`, `failed` (with the reason), `denied`, or `unconfirmed`: it was sent, and not everybody who should
have answered did, or the worker has not done it yet. Celery's workers do not check when a command expired: one that is
busy may still do it later. A worker forgets every change when it is started again.

| action | role | what it does | what else to know |
|---|---|---|---|
"""


def actions_page() -> str:
    """Every action with the role that it needs."""
    commands: dict[str, type[Command]] = {command.action: command for command in reversed(COMMANDS)}
    texts = {action: f"{summary_of(command)} | {command.note}" for action, command in commands.items()}
    texts["message.read"] = "Show a captured message as it is, with its secrets | "
    rows = [f"| `{action}` | {role.name.lower()} | {texts[action]} |" for action, role in sorted(REQUIRED_ROLE.items())]
    end = "Celery's command `election` cannot be sent from here: it ends a lone worker."
    return ACTIONS_INTRODUCTION + "\n".join([*rows, "", end, ""])


def filters_page() -> str:
    """The language, its fields and its words for states."""
    rows = [f"| `{each.name}` | {each.kind} | {each.help} | `{each.example}` |" for each in FIELDS.values()]
    words = ", ".join(f"`{word}`" for word in STATES_BY_WORD)
    head = ["## Fields", "", "| field | kind | what it is | for example |", "|---|---|---|---|"]
    kinds = "Names are compared whole and with case; texts are found by a part of them in any case."
    return "\n".join([FILTERS_INTRODUCTION, *head, *rows, "", kinds, "", "## States", "", words, "", MARKS, ""])


def settings_page() -> str:
    """Every setting: its names, its default, and what it does."""
    return "\n".join([SETTINGS_INTRODUCTION, *(_section(name) for name in SETTINGS)])


def _section(name: str) -> str:
    metadata = SETTINGS[name].metadata
    option = f"--{name.replace('_', '-')}"
    if isinstance(_default(name), bool):
        option = f"{option}` / `--no-{option[2:]}"
    elif metadata["metavar"]:
        option = f"{option} {metadata['metavar']}"
    text = str(metadata["help"])
    lines = [
        f"## {name}",
        "",
        f"{text[:1].upper()}{text[1:]}.",
        "",
        f"- Option: `{option}`" + (" (may be repeated)" if metadata["multiple"] else ""),
        f"- Environment: `{ENVIRONMENT_PREFIX}{name.upper()}`",
        f"- Default: {_shown(_default(name))}",
        "",
    ]
    return "\n".join(lines)


def _default(name: str) -> object:
    return getattr(Settings(), name)


def _shown(default: object) -> str:
    if default in (None, "", (), {}):
        return "none"
    if isinstance(default, tuple):
        return ", ".join(f"`{each}`" for each in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
    (HERE / "filters.md").write_text(filters_page(), encoding="utf-8")
    (HERE / "actions.md").write_text(actions_page(), encoding="utf-8")
