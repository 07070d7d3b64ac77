"""Writes docs/settings.md, filters.md, actions.md and the table of alerts.md from the program: ``make docs``."""

from pathlib import Path

from celery_monitor.control import COMMANDS, REQUIRED_ROLE
from celery_monitor.control.commands import Command, summary_of
from celery_monitor.core.alerts.kinds import DEFAULT_RULES, KINDS
from celery_monitor.core.filters.terms import FIELDS, STATES_BY_WORD
from celery_monitor.settings import ENVIRONMENT_PREFIX, SETTINGS, Settings

HERE = Path(__file__).parent
SETTINGS_INTRODUCTION = """\
# Settings

Written by `make docs` from the table in `monitor/celery_monitor/settings/__init__.py`.

Options override the environment, which overrides the TOML file of `--config FILE`, which overrides the defaults. An
unknown name is an error.

```toml
# monitor.toml: the names below, in lower case
broker = ["shop=redis://localhost:6379/0", "mail=amqp://localhost"]
database = "postgresql://monitor@localhost/monitor"
sample_seconds = 5
```

In the environment, separate the values of a repeatable setting by spaces:
`CELERY_MONITOR_BROKER="shop=redis://localhost:6379/0 mail=amqp://localhost"`.
"""

FILTERS_INTRODUCTION = """\
# The filter language

Written by `make docs`; the tables come from `monitor/celery_monitor/core/filters/terms.py`.

The same filter works in the search field, in the URL of a page (`/tasks?q=...`) and in the API
(`/api/v1/tasks?q=...`):

```
state:failed -name:report.* (queue:payments OR queue:mail) runtime:>5s received:>-1h "connection reset"
```

| write | for |
|---|---|
| `field:value` | tasks with that value |
| `one two` | both conditions |
| `one OR two` | either condition; `OR` binds less tightly than the space |
| `(one OR two) three` | parentheses group |
| `-one` | negation |
| `pay*` | `*` stands for any text, outside quotes |
| `"two words"` | quotes keep a value together; inside, `\\"` and `\\\\` are a quote and a backslash |
| `runtime:>5s` | comparisons `>` `>=` `<` `<=` on numbers, durations and times |
| `wait:100ms..2s` | a range, both ends included; either end may be left out |
| `received:>-1h` | a time counted back from now |
| `field:""` | an unknown value |
| `connection` | a bare word searches name, id, args and exception |

Durations take `ms`, `s`, `m`, `h` and `d`. Times are UTC: `2026-11-01`, `2026-11-01T08:30`, `-15m`.

An unknown field or an invalid value is an error with its column and the allowed values. An invalid filter never matches
everything.
"""


MARKS = """\
`retried:` is `yes`, `no` or one of these states: the state of the latest retry by a person. `retried:""` finds tasks
whose retry was sent but not seen yet. A task retried under the same id is not a new task. Celery's own retries are
counted by `retries`.

`group:open` finds tasks of failure groups that are open or regressed; `group:regressed`, `group:resolved` and
`group:muted` those of groups in that state. *Failed tasks* in the navigation counts failures that still need attention:
`state:failed retried:no -group:muted -group:resolved`.
"""

ACTIONS_INTRODUCTION = """\
# Actions

Written by `make docs`; the table comes from the commands in `monitor/celery_monitor/control/`.

Everything that changes a cluster is an action. It needs a role, is denied on a read-only dashboard, and is recorded on
`/actions` with its outcome, denied ones included.

An outcome is `done`, `failed` (with the reason), `denied`, or `unconfirmed`: sent, but not every worker has answered or
done it yet. Celery's workers ignore the expiry of a command, so a busy one may still do it later. Changes of a worker
are lost when it restarts.

| action | role | effect | notes |
|---|---|---|---|
"""


def actions_page() -> str:
    """Every action with the role that it needs."""
    commands: dict[str, type[Command]] = {command.action: command for command in reversed(COMMANDS)}
    texts = {action: f"{summary_of(command)} | {command.note}" for action, command in commands.items()}
    texts["message.read"] = "Show a captured message as it is, with its secrets | each showing is recorded"
    texts["export.tasks"] = "Export tasks as a file | recorded with its filter and the number of tasks"
    texts["export.actions"] = "Export the trail of actions as a file | recorded with its filters"
    rows = [f"| `{action}` | {role.name.lower()} | {texts[action]} |" for action, role in sorted(REQUIRED_ROLE.items())]
    end = "Celery's command `election` is not supported: it stops a lone worker."
    return ACTIONS_INTRODUCTION + "\n".join([*rows, "", end, ""])


def filters_page() -> str:
    """The filter language with its fields and states."""
    rows = [f"| `{each.name}` | {each.kind} | {each.help} | `{each.example}` |" for each in FIELDS.values()]
    words = ", ".join(f"`{word}`" for word in STATES_BY_WORD)
    head = ["## Fields", "", "| field | kind | what it is | for example |", "|---|---|---|---|"]
    kinds = "Names match exactly and are case-sensitive; texts match by any part, case-insensitive."
    return "\n".join([FILTERS_INTRODUCTION, *head, *rows, "", kinds, "", "## States", "", words, "", MARKS, ""])


def alerts_page() -> str:
    """The page as it is, with the kinds of rules from the program."""
    written = (HERE / "alerts.md").read_text(encoding="utf-8")
    begin, end = written.index("| kind | fires"), written.index("\n\n## Scope")
    return written[:begin] + kinds_table() + written[end:]


def kinds_table() -> str:
    """Every kind of rule: what it measures, its bounds, the fields of its scope, its default rule."""
    head = ["| kind | fires when | bound | window | scope | default rule |", "|---|---|---|---|---|---|"]
    defaults = {rule.kind: rule for rule in DEFAULT_RULES.values()}
    rows = []
    for kind in KINDS.values():
        rule = defaults.get(kind.name)
        default = "none" if rule is None else f"{rule.name}: {rule.severity}, for {rule.for_seconds:g} s"
        bound = f"{kind.bound}{'' if kind.bound_default is None else f' ({kind.bound_default:g})'}"
        window = f"{kind.window} ({kind.window_default:g})" if kind.window else ""
        fields = ", ".join(f"`{each}`" for each in kind.fields)
        rows.append(f"| `{kind.name}` | {kind.help} | {bound} | {window} | {fields} | {default} |")
    return "\n".join([*head, *rows])


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
    (HERE / "alerts.md").write_text(alerts_page(), encoding="utf-8")
