"""Settings: option over environment over file over default, and nothing unknown anywhere."""

import pickle
import runpy
from pathlib import Path

import pytest

from celery_monitor.errors import SettingsError
from celery_monitor.settings import SECRET_FILES, SETTINGS, Settings, load
from celery_monitor.settings.values import Broker, NamedUrl, parse_broker

ROOT = Path(__file__).parent.parent
OTHER: dict[str, tuple[str, object]] = {
    "task_runtime_metric_buckets": ("0.5", (0.5,)),
    "broker": ("amqp://u:p@rabbit:5673/shop", (Broker("default", "amqp://u:p@rabbit:5673/shop"),)),
    "result_backend": ("redis://results:6390/3", (Broker("default", "redis://results:6390/3"),)),
    "broker_options": ('{"global_keyprefix": "shop:"}', {"global_keyprefix": "shop:"}),
    "redbeat": ("mail=redis://beat:6380/3", (Broker("mail", "redis://beat:6380/3"),)),
    "beat_database": ("sqlite:///shop.sqlite3", (Broker("default", "sqlite:///shop.sqlite3"),)),
    "database": ("postgresql://record/shop", "postgresql://record/shop"),
    "public_url": ("https://monitor.example.com/celery", "https://monitor.example.com/celery"),
    "ping_url": ("https://hc.example.com/well", "https://hc.example.com/well"),
    "ping_entry": ("nightly=https://hc.example.com/n", (NamedUrl("nightly", "https://hc.example.com/n"),)),
    "broker_api": ("https://rabbit:15671/api/", "https://rabbit:15671/api/"),
    "url_prefix": ("/shop", "/shop"),
    "source": ("kombu", "kombu"),
    "log_level": ("error", "error"),
    "oidc_provider": ("okta", "okta"),
    "oidc_issuer": ("https://sso.example.com/shop", "https://sso.example.com/shop"),
    "oidc_default_role": ("viewer", "viewer"),
    "trusted_proxies": ("10.7.0.0/16", ("10.7.0.0/16",)),
    "oidc_scopes": ("mail=queue:a", ("mail=queue:a",)),
}


def other_text(name: str) -> tuple[str, object]:
    """A text that is not the default, and the value it stands for."""
    default = getattr(Settings(), name)
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return ("no", False) if default else ("on", True)
    if isinstance(default, int | float):
        return str(default + 3), default + 3
    if isinstance(default, tuple):
        return "other", ("other",)
    return "other", "other"


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_comes_from_option_environment_and_file(name: str, tmp_path: Path) -> None:
    text, value = other_text(name)
    assert getattr(Settings(), name) != value
    assert getattr(load({name: text}, {}), name) == value
    assert getattr(load({}, {f"CELERY_MONITOR_{name.upper()}": text}), name) == value
    file = tmp_path / "monitor.toml"
    file.write_text(f"{name} = '{text}'\n", encoding="utf-8")
    assert getattr(load({}, {}, file), name) == value


def test_a_removed_setting_says_what_to_do_instead(tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text("shard = '1/2'\n", encoding="utf-8")
    places: list[tuple[dict[str, str], dict[str, str], Path | None]] = [
        ({"shard": "1/2"}, {}, None),
        ({}, {"CELERY_MONITOR_SHARD": "1/2"}, None),
        ({}, {}, file),
    ]
    for options, environ, path in places:
        with pytest.raises(SettingsError, match=r"no setting 'shard'; .* run one receiver for each broker"):
            load(options, environ, path)


def test_option_goes_before_environment_before_file(tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text('port = 7001\nhost = "127.0.0.2"\nnode_id = "file"\n', encoding="utf-8")
    environ = {"CELERY_MONITOR_PORT": "7002", "CELERY_MONITOR_HOST": "127.0.0.3", "HOME": "/"}
    settings = load({"port": "7003", "host": None, "broker": ()}, environ, file)
    assert (settings.port, settings.host, settings.node_id) == (7003, "127.0.0.3", "file")


SECRETS = sorted(SECRET_FILES.values())


@pytest.mark.parametrize("name", SECRETS)
def test_each_secret_can_stand_in_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    text, value = other_text(name)
    secret = tmp_path / "secret"
    secret.write_text(f"# who may\n\n{text}\n", encoding="utf-8")
    config = tmp_path / "monitor.toml"
    config.write_text(f'{name}_file = "{secret}"\n', encoding="utf-8")
    found = (
        load({f"{name}_file": str(secret)}, {}),
        load({}, {f"CELERY_MONITOR_{name.upper()}_FILE": str(secret)}),
        load({}, {}, config),
    )
    assert [getattr(each, name) for each in found] == [value] * 3


def test_file_of_a_secret_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    two, none = tmp_path / "two", tmp_path / "none"
    two.write_text("one\ntwo\n", encoding="utf-8")
    none.write_text("# nothing\n", encoding="utf-8")
    for given, words in (
        ({"secret_key_file": str(two)}, "2 lines"),
        ({"basic_auth_file": str(none)}, "0 lines"),
        ({"secret_key_file": str(tmp_path / "away")}, "No such file"),
        ({"secret_key_file": str(tmp_path)}, "cannot read"),
        ({"secret_key": "x", "secret_key_file": str(two)}, "remove one"),
        ({"port_file": str(two)}, "no setting"),
    ):
        with pytest.raises(SettingsError, match=words):
            load(given, {})


def test_several_values_in_each_place(tmp_path: Path) -> None:
    urls = ("shop=redis://a/1", "mail=amqp://b")
    wanted = (Broker("shop", "redis://a/1"), Broker("mail", "amqp://b"))
    file = tmp_path / "monitor.toml"
    file.write_text(f"broker = {list(urls)}\n", encoding="utf-8")
    assert load({"broker": urls}, {}).broker == wanted
    assert load({}, {"CELERY_MONITOR_BROKER": " ".join(urls)}).broker == wanted
    assert load({}, {}, file).broker == wanted


def test_an_unknown_name_like_no_other_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"'zebra'; use one of .*port"):
        load({"zebra": "1"}, {})


def test_unknown_names_raise_and_name_the_one_that_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text("prot = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'prot'; did you mean port"):
        load({"prot": "1"}, {})
    with pytest.raises(SettingsError, match=r"'prot'; did you mean port"):
        load({}, {"CELERY_MONITOR_PROT": "1"})
    with pytest.raises(SettingsError, match=r"'prot'; did you mean port"):
        load({}, {}, file)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("port", "http", "port: 'http' is not an integer"),
        ("port", "-1", "negative"),
        ("sample_seconds", "0", "positive"),
        ("sample_seconds", "inf", "finite"),
        ("sample_seconds", "soon", "not a number"),
        ("read_only", "perhaps", "is not a boolean"),
        ("source", "kafka", "auto, kombu, redis, amqp"),
        ("broker_options", "{", "not a JSON object"),
        ("broker", "localhost", "not a URL"),
        ("broker", "a shop=redis://x", "letters, digits"),
    ],
)
def test_a_wrong_value_says_what_is_wrong(name: str, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load({name: text}, {})


def test_two_brokers_need_two_names() -> None:
    with pytest.raises(SettingsError, match="have the name 'default'"):
        load({"broker": ("redis://a", "redis://b")}, {})


def test_each_cluster_has_its_own_result_backend() -> None:
    brokers = ("shop=redis://a", "mail=redis://b")
    given = load({"broker": brokers, "result_backend": ("mail=rediss://r/2?x=y",)}, {})
    assert [given.address_of("result_backend", cluster) for cluster in given.clusters] == [
        None,
        Broker("mail", "rediss://r/2?x=y"),
    ]
    alone = load({"broker": brokers[:1], "result_backend": ("redis://r/1",)}, {})
    assert alone.address_of("result_backend", "shop") == Broker("default", "redis://r/1")
    table = load({"result_backend": ("db+postgresql://r/1",)}, {}).address_of("result_backend", "any")
    assert table == Broker("default", "db+postgresql://r/1")
    with pytest.raises(SettingsError, match="only Redis and SQL databases are read") as caught:
        load({"result_backend": ("mongodb://ada:s3cret@r/1",)}, {})
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("name", ["result_backend", "redbeat", "beat_database"])
@pytest.mark.parametrize("address", ["cellar={}", "{}"])
def test_an_address_of_no_cluster_is_refused(name: str, address: str) -> None:
    address = address.format("postgresql://r/1" if name == "beat_database" else "redis://r/1")
    with pytest.raises(SettingsError, match="the brokers are called shop, mail; write NAME=URL"):
        load({"broker": ("shop=redis://a", "mail=redis://b"), name: (address,)}, {})


def test_a_broker_url_may_hold_an_equals_sign() -> None:
    assert parse_broker("redis://a/0?x=y") == Broker("default", "redis://a/0?x=y")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml"):
        load({}, {}, tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 3", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"broken\.toml is not TOML"):
        load({}, {}, broken)


def test_settings_travel_to_a_child_process() -> None:
    settings = load({"broker": "shop=redis://x/3", "broker_options": '{"sep": ":"}'}, {})
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("page", ["settings", "filters", "actions", "alerts"])
def test_the_document_is_what_the_table_says(page: str) -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    written = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert written == generate[f"{page}_page"](), "run make docs"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_stands_in_its_document(name: str) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    assert f"`CELERY_MONITOR_{name.upper()}`" in page
