"""The command line. The only module that prints.

Celery loads this module at each start of each worker, to look for commands (the entry point celery.commands); a worker
needs no dashboard. So functions are named here by ``module:function``, and loaded when a command runs.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from celery_monitor import __version__
from celery_monitor.addresses import check_broker, masked, transport_of
from celery_monitor.errors import MonitorError
from celery_monitor.settings import REMOVED, SETTINGS, Settings, load
from celery_monitor.supervise import configure_logging, resolve_without_gc, stop_on_signals

EXIT_WRONG = 1
EXIT_USAGE = 2
RESUME = "resume"
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EPILOG = (
    "Each option can also be set in the environment (--sample-seconds as CELERY_MONITOR_SAMPLE_SECONDS) or in the "
    "--config file (sample_seconds = 5). Options override the environment, which overrides the file."
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


class Failure(click.ClickException):
    """An error on one line, with the passwords of URLs masked."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str) -> None:
        super().__init__(masked(" ".join(message.split())))


def usage_failure(command: click.Command, ctx: click.Context, error: click.UsageError) -> Failure:
    """A usage error as a Failure; for an unknown option, with the closest known one."""
    if not isinstance(error, click.NoSuchOption):
        return Failure(error.format_message())
    names = sorted(name for each in command.get_params(ctx) for name in each.opts if name.startswith("--"))
    near = get_close_matches(error.option_name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"
    removed = REMOVED.get(error.option_name.removeprefix("--"))
    return Failure(f"there is no option {error.option_name}; {removed or hint}")


class ClickCommand(click.Command):
    """Reports every error on one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error) from None

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
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise usage_failure(self, ctx, error) from None


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
    return [config, *(_setting_option(name) for name in SETTINGS if name not in without)]


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
    settings = load(options, os.environ, file)
    configure_logging(settings.log_level)
    if not {transport_of(broker.url) for broker in settings.broker} <= PACKAGED:
        check_brokers(settings)  # here, before any process is started
    return settings


def _command(name: str, run: Runner, text: str) -> ClickCommand:
    def callback(**options: Any) -> None:
        settings = _load(options)
        run(settings, stop_on_signals(), click.echo)

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
    click.echo(json.dumps(to_json(reports), indent=2) if as_json else "\n".join(lines(reports)))
    sys.exit(EXIT_WRONG if any(report.is_wrong for report in reports) else 0)


main.add_command(
    ClickCommand(
        "doctor",
        callback=_doctor,
        params=[click.Option(["--json"], is_flag=True, help="Print the findings as JSON."), *setting_options()],
        help="Diagnose this setup and suggest fixes. Takes the options of serve, checks brokers, workers and the "
        "database for a few seconds, and never changes anything. Exits with 0 if nothing is wrong, else with 1."
        "\n\n\b\nExample:\n  celery-monitor doctor --broker redis://localhost:6379/0",
        epilog=EPILOG,
    )
)


@main.command(cls=ClickCommand)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", default=5555, show_default=True, metavar="PORT", help="Port to listen on; 0 takes a free one.")
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
        raise Failure(f"--rate: write tasks per second, above 0 and up to {MOST_RATE:g}")
    run_demo(demo_of(**options), stop_on_signals(), click.echo)


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
    start_afresh(replace(settings, application=loaded(ctx.obj.app, settings.app)), RESUME)


@main.command(RESUME, cls=ClickCommand, hidden=True)
@click.argument("descriptor", type=int)
def resume(descriptor: int) -> None:
    """Continue with the settings that ``celery -A proj monitor`` has read."""
    settings = handed_over(descriptor)
    configure_logging(settings.log_level)
    run_serve(settings, stop_on_signals(), click.echo)


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
