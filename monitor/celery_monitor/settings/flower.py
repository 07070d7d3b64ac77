"""Flower's options: each is one of our settings, is not needed, or is refused with what to use instead.

They come from the command line, from ``FLOWER_<NAME>``, and from flowerconfig.py, which is read and never executed.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from celery_monitor.errors import SettingsError
from celery_monitor.settings.values import parse_bool, quoted

ENVIRONMENT_PREFIX = "FLOWER_"
DEFAULT_FILE = "flowerconfig.py"
PROVIDERS = {
    "flower.views.auth.GoogleAuth2LoginHandler": "google",
    "flower.views.auth.GithubLoginHandler": "github",
    "flower.views.auth.GitLabLoginHandler": "gitlab",
    "flower.views.auth.OktaLoginHandler": "okta",
}


def _same(value: str) -> str:
    return value


def _prefix(value: str) -> str:
    return f"/{value.strip('/')}" if value.strip("/") else ""


def _account(value: str) -> str:
    """Flower's users may do everything."""
    user, colon, password = value.partition(":")
    if not colon:
        raise SettingsError("an entry of basic_auth is user:password")
    return f"{user}:admin:{password}"


def _provider(value: str) -> str:
    if value not in PROVIDERS:
        raise SettingsError(f"{quoted(value)} is not known here; use --oidc-provider and --oidc-issuer")
    return PROVIDERS[value]


def _debug(value: str) -> str:
    return "debug" if parse_bool(value) else "info"


def _proxies(value: str) -> str:
    """Flower believes the headers of anybody; here it is the proxy on this machine."""
    return "127.0.0.1" if parse_bool(value) else ""


class Option(NamedTuple):
    """What an option of Flower is here. Without a ``setting`` it is not needed, or ``refused``."""

    text: str  # for docs/flower.md and messages
    setting: str | None = None
    convert: Callable[[str], str] = _same
    multiple: bool = False
    refused: bool = False


OPTIONS: dict[str, Option] = {
    "port": Option("`port`", "port"),
    "address": Option("`host`; loopback by default, not every address", "host"),
    "unix_socket": Option("`unix_socket`", "unix_socket"),
    "debug": Option("`log_level` debug", "log_level", _debug),
    "inspect_timeout": Option("not needed: workers are waited for two seconds, and only as long as they answer"),
    "auth": Option("refused: say who may sign in with `oidc_admins`, `oidc_operators`, `oidc_viewers`", refused=True),
    "basic_auth": Option("`basic_auth` with the role admin, as in Flower", "basic_auth", _account, multiple=True),
    "oauth2_key": Option("`oidc_client_id`", "oidc_client_id"),
    "oauth2_secret": Option("`oidc_client_secret`", "oidc_client_secret"),
    "oauth2_redirect_uri": Option("not needed: it follows from the address; see [security.md](security.md)"),
    "max_workers": Option("not needed: the record has 5,000 workers of a cluster, those that were seen last"),
    "max_tasks": Option("`keep_tasks`", "keep_tasks"),
    "db": Option("not needed: the record is `database`, and is always kept"),
    "persistent": Option("not needed: the record is always kept"),
    "state_save_interval": Option("not needed: every batch of events is stored at once"),
    "broker_api": Option("`broker_api`", "broker_api"),
    "ca_certs": Option("refused: let a proxy serve HTTPS, and name it in `trusted_proxies`", refused=True),
    "certfile": Option("refused: let a proxy serve HTTPS, and name it in `trusted_proxies`", refused=True),
    "keyfile": Option("refused: let a proxy serve HTTPS, and name it in `trusted_proxies`", refused=True),
    "xheaders": Option(
        "`trusted_proxies` 127.0.0.1; name a proxy that is elsewhere", "trusted_proxies", _proxies, multiple=True
    ),
    "auto_refresh": Option("not needed: pages are live"),
    "purge_offline_workers": Option("`purge_offline_workers`", "purge_offline_workers"),
    "cookie_secret": Option("`secret_key`", "secret_key"),
    "conf": Option("read as literals, and never executed"),
    "enable_events": Option("`enable_events`", "enable_events"),
    "format_task": Option("refused: code is not run here; `redact` masks values", refused=True),
    "natural_time": Option("not needed: pages show both"),
    "tasks_columns": Option("not needed: each viewer chooses the columns on the page"),
    "auth_provider": Option("`oidc_provider`", "oidc_provider", _provider),
    "url_prefix": Option("`url_prefix`", "url_prefix", _prefix),
    "task_runtime_metric_buckets": Option(
        "`task_runtime_metric_buckets`, of the bounds that durations are counted by", "task_runtime_metric_buckets",
        multiple=True,
    ),
    "read_only": Option("`read_only`", "read_only"),
}  # fmt: skip


def translated(given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Our settings for options of Flower, and notes on those that are not needed. Raises SettingsError."""
    settings: dict[str, object] = {}
    notes = []
    for name, value in given.items():
        option = OPTIONS[name]
        if option.refused:
            raise SettingsError(f"{name} of Flower is {option.text.replace('`', '')}")
        if option.setting is None:
            if name != "conf":
                notes.append(f"{name} of Flower is {option.text.replace('`', '')}")
            continue
        values = [option.convert(each) for each in _texts(value, option)]
        if option.multiple:
            settings[option.setting] = tuple(each for each in values if each)
        else:
            settings[option.setting] = values[-1]
    return {name: value for name, value in settings.items() if value != ()}, notes


def _texts(value: object, option: Option) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return str(value).split(",") if option.multiple else [str(value)]


def from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Flower's options among the variables; it ignores any other of its prefix, too."""
    names = {variable: variable.removeprefix(ENVIRONMENT_PREFIX).lower() for variable in environ}
    return {
        name: environ[variable]
        for variable, name in names.items()
        if variable.startswith(ENVIRONMENT_PREFIX) and name in OPTIONS
    }


def from_file(path: Path, *, must_exist: bool) -> dict[str, object]:
    """The options that a flowerconfig.py assigns. Raises SettingsError for one that is not a literal."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        if must_exist:
            raise SettingsError(f"there is no file {path}") from None
        return {}
    except (OSError, ValueError, SyntaxError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    given: dict[str, object] = {}
    for line in tree.body:
        for name, value in _assigned(line):
            if name in OPTIONS:
                given[name] = _literal(value, f"{path} line {line.lineno}: {name}")
    return given


def _assigned(line: ast.stmt) -> list[tuple[str, ast.expr | None]]:
    """What a statement may give a value: the names and, of a plain assignment, the value."""
    if isinstance(line, ast.Assign) and all(isinstance(each, ast.Name) for each in line.targets):
        return [(each.id, line.value) for each in line.targets if isinstance(each, ast.Name)]
    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
        return [(line.target.id, line.value)]
    if isinstance(line, ast.FunctionDef | ast.ClassDef):
        return [(line.name, None)]
    stored = [each for each in ast.walk(line) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
    return [(each.id, None) for each in stored]


def _literal(value: ast.expr | None, place: str) -> Any:
    try:
        if value is not None:
            return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    raise SettingsError(f"{place} is not a literal, and this file is never executed; write the value itself")
