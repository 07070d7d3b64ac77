"""The command line. The only module that prints.

Celery loads this module at each start of each worker, to look for commands (the entry point celery.commands); a worker
needs no dashboard. So functions are named here by ``module:function``, and loaded when a command runs.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from celery_monitor import __version__
from celery_monitor.addresses import check_broker, masked, masked_value, transport_of
from celery_monitor.core.untrusted import printable, printable_lines
from celery_monitor.errors import MonitorError
from celery_monitor.records.user import of_scope
from celery_monitor.settings import REMOVED, SECRET_FILES, SETTINGS, Settings, load
from celery_monitor.settings.flower import DEFAULT_FILE, OPTIONS, from_environment, from_file, translated
from celery_monitor.supervise import configure_logging, resolve_without_gc, stop_on_signals

log = logging.getLogger(__name__)

EXIT_WRONG = 1
EXIT_USAGE = 2
RESUME = "resume"
FLOWER = "flower_"  # before the names of its options among ours
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EPILOG = (
    "Each option can also be set in the environment (--sample-seconds as CELERY_MONITOR_SAMPLE_SECONDS) or in the "
    "--config file (sample_seconds = 5). Options override the environment, which overrides the file. Settings that "
    "may hold a password can be read from a file: --basic-auth-file FILE, CELERY_MONITOR_BROKER_FILE and so on."
)
MOST_RATE = 10_000.0
PACKAGED = {"redis", "amqp"}  # transports whose libraries are always installed
Runner = Callable[..., None]


def later(name: str) -> Callable[..., Any]:
    """A function that loads ``module:function`` when it is called."""

    def call(*arguments: object, **options: object) -> Any:
        return resolve_without_gc(name)(*arguments, **options)

    return call


run_serve = later("celery_monitor.serve:run_serve")
run_receive = later("celery_monitor.serve:run_receive")
run_web = later("celery_monitor.serve:run_web")
run_demo = later("celery_monitor.demo:run")
demo_of = later("celery_monitor.demo:Demo")
with_brokers = later("celery_monitor.serve:with_brokers")
check_brokers = later("celery_monitor.brokers.connection:check_brokers")
loaded = later("celery_monitor.brokers.application:loaded")
start_afresh = later("celery_monitor.serve:start_afresh")
handed_over = later("celery_monitor.serve:handed_over")
examine = later("celery_monitor.doctor:examine")
lines = later("celery_monitor.doctor:lines")
to_json = later("celery_monitor.doctor:to_json")
perform_locally = later("celery_monitor.control.users:perform_locally")
open_store = later("celery_monitor.store.engine:open_store")
read_users = later("celery_monitor.store.accounts.users:read_users")
read_tokens = later("celery_monitor.store.accounts.users:read_tokens")
save_backup = later("celery_monitor.store.copies:save_backup")
restore_backup = later("celery_monitor.store.copies:restore_backup")
copy_record = later("celery_monitor.store.copies:copy_record")


class Failure(click.ClickException):
    """An error on one line, without secrets and control characters."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str) -> None:
        super().__init__(printable(masked(" ".join(message.split()))))


def say(text: str) -> None:
    """Prints lines that may contain text from outside."""
    click.echo(printable_lines(text))


def usage_failure(command: click.Command, ctx: click.Context, error: click.UsageError, args: Sequence[str]) -> Failure:
    """A usage error as a Failure; for an unknown option, with the closest known one. It may repeat arguments."""
    if not isinstance(error, click.NoSuchOption):
        message = error.format_message()
        for each in args:
            if (shown := masked_value(each)) != each:
                message = message.replace(each, shown).replace(repr(each), repr(shown))
        return Failure(message)
    names = sorted(name for each in command.get_params(ctx) for name in each.opts if name.startswith("--"))
    near = get_close_matches(error.option_name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"
    removed = REMOVED.get(error.option_name.removeprefix("--"))
    return Failure(f"there is no option {masked_value(error.option_name)}; {removed or hint}")


class ClickCommand(click.Command):
    """Reports every error on one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error, given) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MonitorError as error:
            raise Failure(error.message) from error


class Group(click.Group):
    """Reports an unknown command on one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:  # click shows the help
            return super().parse_args(ctx, args)
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error, given) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error, args) from None


@click.group(cls=Group, context_settings=HELP)
@click.version_option(__version__, prog_name="celery-monitor")
def main() -> None:
    """A live dashboard for Celery: what is running, what failed and why, what is stuck. Retries tasks.

    \b
    Try it with sample data:  celery-monitor demo
    Monitor your own broker:  celery-monitor serve --broker redis://localhost:6379/0
    """


def setting_options(without: Sequence[str] = ()) -> list[click.Parameter]:
    """``--config``, and one option per setting."""
    config = click.Option(
        ["--config"], type=click.Path(path_type=Path), metavar="FILE", help="TOML file with settings."
    )
    files = [
        click.Option([f"--{name.replace('_', '-')}"], metavar="FILE", hidden=True)
        for name, secret in SECRET_FILES.items()
        if secret not in without
    ]
    flower = _flower_options() if "port" not in without else []
    return [config, *(_setting_option(name) for name in SETTINGS if name not in without), *files, *flower]


def _flower_options() -> list[click.Parameter]:
    """Those of Flower, by the names that it gives them; not in the help."""
    return [
        click.Option(
            [FLOWER + name, *_flower_flags(name)],
            is_flag=False,
            flag_value="true",
            hidden=True,
        )
        for name in OPTIONS
        if _flower_flags(name)
    ]


def _flower_flags(name: str) -> list[str]:
    """Flower takes both ``--max_tasks`` and ``--max-tasks``; what we call the same is ours."""
    flags = {f"--{name}", f"--{name.replace('_', '-')}"}
    return sorted(flags - {f"--{ours.replace('_', '-')}" for ours in SETTINGS})


def _our_name(option: str) -> str:
    """The setting that an option stands for; empty for one of Flower's that stands for none."""
    return (OPTIONS[option.removeprefix(FLOWER)].setting or "") if option.startswith(FLOWER) else option


def _with_flower(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, object], list[str]]:
    """The options with Flower's among them as ours; then what its environment and file set, and notes on all."""
    given = {
        name.removeprefix(FLOWER): options.pop(name) for name in [each for each in options if each.startswith(FLOWER)]
    }
    given = {name: value for name, value in given.items() if value is not None and value != ()}
    environment = from_environment(os.environ)
    conf = given.get("conf") or environment.get("conf")
    file = from_file(Path(str(conf or DEFAULT_FILE)), must_exist=conf is not None)
    ours, notes = translated(given)
    below, more_notes = translated({**environment, **file})
    chosen = {name: value for name, value in options.items() if value is not None and value != ()}
    return {**options, **ours, **chosen}, below, [*notes, *more_notes]


def _setting_option(name: str) -> click.Option:
    metadata = SETTINGS[name].metadata
    flag = f"--{name.replace('_', '-')}"
    if isinstance(SETTINGS[name].default, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=_help(name))
    flags = ["-A", flag] if name == "app" else [flag]
    return click.Option(flags, multiple=metadata["multiple"], metavar=metadata["metavar"], help=_help(name))


def _help(name: str) -> str:
    text = str(SETTINGS[name].metadata["help"])
    shown = _shown(SETTINGS[name].default)
    return f"{text[:1].upper()}{text[1:]}." + (f" [default: {shown}]" if shown else "")


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default) if isinstance(default, (str, int, float)) else ""


def _load(options: dict[str, Any]) -> Settings:
    file = options.pop("config")
    given, below, notes = _with_flower(options)
    settings = load(given, os.environ, file, below)
    configure_logging(settings.log_level)
    for note in notes:
        log.info("%s", note)
    if not {transport_of(broker.url) for broker in settings.broker} <= PACKAGED:
        check_brokers(settings)  # here, before any process is started
    return settings


def _shows_secret(name: str, value: object) -> bool:
    """Whether an option that was given holds a secret: any but an address without a password."""
    if value is None or value == () or name not in SETTINGS or not SETTINGS[name].metadata["secret"]:
        return False
    texts = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
    return any("://" not in text or masked(text) != text for text in texts)


def _command(name: str, run: Runner, text: str) -> ClickCommand:
    def callback(**options: Any) -> None:
        secret = any(_shows_secret(_our_name(each), value) for each, value in options.items())
        settings = _load(options)
        if secret:  # in the list of processes, where everybody on this machine reads it
            start_afresh(settings, RESUME, name)
        run(settings, stop_on_signals())

    return ClickCommand(name, callback=callback, params=setting_options(), help=text, epilog=EPILOG)


main.add_command(
    _command(
        "serve",
        run_serve,
        "Monitor brokers and serve the dashboard: one receiver process per broker and one web process.\n\n\b\n"
        "Example:\n  celery-monitor serve --broker shop=redis://localhost:6379/0 --broker mail=amqp://localhost",
    )
)
main.add_command(_command("receive", run_receive, "Only store events: read them from the brokers into the database."))
main.add_command(_command("web", run_web, "Only serve the dashboard from a database that receivers fill."))


def _doctor(**options: Any) -> None:
    as_json = options.pop("json")
    settings = _load({**options, "log_level": options["log_level"] or "error"})
    reports = examine(with_brokers(settings))
    say(json.dumps(to_json(reports), indent=2) if as_json else "\n".join(lines(reports)))
    sys.exit(EXIT_WRONG if any(report.is_wrong for report in reports) else 0)


main.add_command(
    ClickCommand(
        "doctor",
        callback=_doctor,
        params=[click.Option(["--json"], is_flag=True, help="Print the findings as JSON."), *setting_options()],
        help="Diagnose this setup and suggest fixes. Accepts the options of serve, checks brokers, workers and the "
        "database for a few seconds, and never changes anything. Exits with 0 if there are no problems, else with 1."
        "\n\n\b\nExample:\n  celery-monitor doctor --broker redis://localhost:6379/0",
        epilog=EPILOG,
    )
)


@main.command(cls=ClickCommand)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", default=5555, show_default=True, metavar="PORT", help="Port to listen on; 0 picks a free one.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for the demo's files (record, logs). By default they are temporary.",
)
@click.option(
    "--broker",
    default="redis",
    show_default=True,
    metavar="redis|URL",
    help="redis starts its own Redis; a URL such as amqp://localhost uses that broker.",
)
@click.option("--rate", default=6.0, show_default=True, metavar="N", help="Tasks per second.")
@click.option(
    "--failures",
    default=0.08,
    show_default=True,
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of orders that run into trouble.",
)
def demo(**options: Any) -> None:
    """Run a sample shop: a broker, three workers, beat, traffic, and the dashboard.

    Ctrl-C stops everything that it started, and nothing else.
    """
    configure_logging("warning")
    if options["broker"] != "redis":
        check_broker(options["broker"])
    if not 0 < options["rate"] <= MOST_RATE:
        raise Failure(f"--rate must be above 0 and at most {MOST_RATE:g}")
    run_demo(demo_of(**options), stop_on_signals(), say)


ROLE_NAMES = click.Choice(["viewer", "operator", "admin"])
NAME = click.Argument(["name"])
NEW_ROLE = click.Option(["--role", "role_name"], type=ROLE_NAMES, required=True)
ROLE = click.Option(["--role", "role_name"], type=ROLE_NAMES, default="viewer", show_default=True)
TOKEN_ROLE = click.Option(
    ["--role", "role_name"],
    type=click.Choice(["metrics", "viewer", "operator", "admin"]),
    default="viewer",
    show_default=True,
    help="metrics reads only /metrics and health.",
)
SCOPE_HELP = (
    "What the user can see and act on: conditions on cluster, queue and name, as in 'cluster:eu queue:emails,mail-*'."
)
SCOPE = click.Option(["--scope"], default="", metavar="SCOPE", help=f"{SCOPE_HELP} [default: everything]")
NEW_SCOPE = click.Argument(["scope"])
PASSWORD = click.Option(
    ["--password-stdin"], is_flag=True, help="Read the password from standard input instead of asking for it."
)
NO_PASSWORD = click.Option(
    ["--no-password"], is_flag=True, help="The user signs in at a trusted proxy or an identity provider."
)
DAYS = click.Option(["--days"], type=float, metavar="N", help="Days after which the token expires. [default: never]")


@main.group(cls=Group)
def users() -> None:
    """Add, list and change the users who can sign in.

    \b
    Example:
      celery-monitor users add ada --role admin --database sqlite:///celery-monitor.db
    """


@main.group(cls=Group)
def tokens() -> None:
    """Create, list and revoke API tokens for scripts."""


def _database_command(group: click.Group, name: str, run: Runner, text: str, *params: click.Parameter) -> None:
    """A command that works on the database alone."""
    without = [each for each in SETTINGS if each != "database"]

    def callback(config: Path | None, database: str | None, database_file: str | None, **options: Any) -> None:
        given = {"config": config, "database": database, "database_file": database_file, "log_level": "warning"}
        run(_load(given), **options)

    command = ClickCommand(name, callback=callback, params=[*params, *setting_options(without)], help=text)
    group.add_command(command)


def _performing(action: str) -> Runner:
    def run(
        settings: Settings, *, password_stdin: bool | None = None, no_password: bool = False, **options: Any
    ) -> None:
        if password_stdin is not None and not no_password:
            options["password"] = _read_password(from_stdin=password_stdin)
        performed = perform_locally(settings, action, **options)
        say(performed.message)
        if performed.secret is not None:
            say(performed.secret)

    return run


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


def _list_users(settings: Settings) -> None:
    with closing(open_store(settings.database)) as store:
        for user in read_users(store):
            role = f"{user.role.name.lower()}{of_scope(user.scope)}"
            say(f"{user.name}  {role}{'  disabled' if user.disabled else ''}")


def _list_tokens(settings: Settings) -> None:
    with closing(open_store(settings.database)) as store:
        for token in read_tokens(store):
            say(
                f"{token.name}  {token.role.name.lower()}{of_scope(token.scope)}  expires {_day(token.expires_at)}  "
                f"last used {_day(token.used_at)}"
            )


def _day(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


_database_command(
    users,
    "add",
    _performing("user.add"),
    "Add a user; the first one becomes admin of everything.",
    NAME,
    ROLE,
    SCOPE,
    PASSWORD,
    NO_PASSWORD,
)
_database_command(users, "list", _list_users, "List the users.")
_database_command(users, "role", _performing("user.role"), "Change the role of a user.", NAME, NEW_ROLE)
_database_command(
    users,
    "scope",
    _performing("user.scope"),
    f"Change the scope of a user; '' is everything. {SCOPE_HELP}",
    NAME,
    NEW_SCOPE,
)
_database_command(users, "password", _performing("user.password"), "Set a new password.", NAME, PASSWORD)
_database_command(users, "disable", _performing("user.disable"), "Disable a user and end the user's sessions.", NAME)
_database_command(users, "enable", _performing("user.enable"), "Let a disabled user sign in again.", NAME)
_database_command(users, "remove", _performing("user.remove"), "Remove a user.", NAME)
_database_command(users, "sign-out", _performing("session.end_all"), "End all sessions of a user.", NAME)
_database_command(
    tokens, "add", _performing("token.make"), "Create a token and print it, once.", NAME, TOKEN_ROLE, SCOPE, DAYS
)
_database_command(tokens, "list", _list_tokens, "List the tokens.")
_database_command(tokens, "revoke", _performing("token.revoke"), "Revoke a token.", NAME)


def _backup(settings: Settings, *, file: Path) -> None:
    say(f"Saved {_tasks(save_backup(settings.database, file).tasks)} to {file}.")


def _restore(settings: Settings, *, file: Path, replace: bool) -> None:
    copied = restore_backup(file, settings.database, replace=replace)
    say(f"Restored {_tasks(copied.tasks)} to {copied.target}.")


def _export(settings: Settings, *, address: str, replace: bool) -> None:
    copied = copy_record(settings.database, address, replace=replace)
    say(f"Copied {_tasks(copied.tasks)} to {copied.target}.")


def _import(settings: Settings, *, address: str, replace: bool) -> None:
    copied = copy_record(address, settings.database, replace=replace)
    say(f"Copied {_tasks(copied.tasks)} to {copied.target}.")


def _tasks(count: int) -> str:
    return f"{count:,} task{'' if count == 1 else 's'}"


FILE = click.Argument(["file"], type=click.Path(path_type=Path, dir_okay=False))
ADDRESS = click.Argument(["address"])
REPLACE = click.Option(["--replace"], is_flag=True, help="Delete what the target has. [default: refuse]")
_database_command(
    main,
    "backup",
    _backup,
    "Save the record to a new SQLite file, as it is at one moment; everything may go on running. The file holds "
    "password hashes and captured messages: it is readable by its owner alone.",
    FILE,
)
_database_command(
    main,
    "restore",
    _restore,
    "Make a backup the record. End celery-monitor first; the backup may be from an older version.",
    FILE,
    REPLACE,
)
_database_command(
    main,
    "export",
    _export,
    "Copy the record to the empty database at ADDRESS: from SQLite to PostgreSQL, or back.\n\n\b\n"
    "Example:\n  celery-monitor export postgresql://monitor@db/monitor --database sqlite:///celery-monitor.db",
    ADDRESS,
    REPLACE,
)
_database_command(
    main,
    "import",
    _import,
    "Copy the record at ADDRESS to the empty database of --database: from SQLite to PostgreSQL, or back.\n\n\b\n"
    "Example:\n  celery-monitor import sqlite:///celery-monitor.db --database postgresql://monitor@db/monitor",
    ADDRESS,
    REPLACE,
)


@click.command(
    "monitor",
    cls=ClickCommand,
    params=setting_options(without=("app",)),
    epilog=EPILOG,
    context_settings=HELP,
)
@click.pass_context
def celery_command(ctx: click.Context, /, **options: Any) -> None:
    """Monitor this app's broker and serve the dashboard (celery-monitor)."""
    settings = _load(options | {"app": application_name(sys.argv, os.environ)})
    start_afresh(replace(settings, application=loaded(ctx.obj.app, settings.app)), RESUME, "serve")


RUNNERS: dict[str, Runner] = {"serve": run_serve, "receive": run_receive, "web": run_web}


@main.command(RESUME, cls=ClickCommand, hidden=True)
@click.argument("command", type=click.Choice([*RUNNERS]))
@click.argument("descriptor", type=int)
def resume(command: str, descriptor: int) -> None:
    """Go on with settings that were read already: by ``celery -A proj monitor``, or from options with secrets."""
    settings = handed_over(descriptor)
    configure_logging(settings.log_level)
    RUNNERS[command](settings, stop_on_signals())


def application_name(arguments: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """NAME of ``celery -A NAME``: Celery passes on the loaded application, not its name."""
    words = iter(arguments)
    for word in words:
        if word in {"-A", "--app"}:
            return next(words, None)
        if word.startswith("--app="):
            return word.removeprefix("--app=")
        if word.startswith("-A"):
            return word.removeprefix("-A")
    return environ.get("APP") or environ.get("CELERY_APP")
