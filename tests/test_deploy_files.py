"""Image, compose files, chart and units of deploy/: what they name exists, and tools of their makers accept them."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from celery_monitor.cli import main
from celery_monitor.settings import SECRET_FILES, SETTINGS, load
from tests.proxies import DEPLOY
from tests.servers import needs_program
from tests.workers import ROOT

VARIABLE = re.compile(r"\bCELERY_MONITOR_([A-Z][A-Z_]*[A-Z])\b")
COMMAND = re.compile(r"celery-monitor (serve|receive|web|backup|restore|import|export|users)\b([^\n]*)")
OPTION = re.compile(r"(--[a-z][a-z-]*)")
COMPOSE = [DEPLOY / "compose" / name for name in ("redis.yaml", "postgresql.yaml")]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCUMENT = ROOT / "docs" / "operations.md"
KUBERNETES = "1.31"
LARGEST_EXPOSURE = 20  # of 100; systemd calls up to 20 OK
CHARTS: dict[str, dict[str, Any]] = {
    "volume": {},
    "volume and metrics": {"serviceMonitor": {"enabled": True}},
    "postgresql": {
        "postgresql": True,
        "urlPrefix": "/monitor",
        "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls", "annotations": {"a/b": "c"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "settings": {"keep_tasks": 1_000_000, "read_only": True, "sample_seconds": 2.5, "log_level": "warning"},
        "trustedProxies": ["10.0.0.0/8", "192.168.0.0/16"],
        "secretKeys": ["broker", "basic_auth", "secret_key"],
        "persistence": {"storageClass": "fast"},
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
    },
}


def texts() -> Iterator[tuple[Path, str]]:
    files = [each for each in DEPLOY.rglob("*") if each.is_file() and each.suffix != ".json"]
    yield from ((each, each.read_text(encoding="utf-8")) for each in [*files, DOCUMENT])


def is_setting(name: str) -> bool:
    return name in SETTINGS or name in SECRET_FILES


def test_every_variable_is_a_setting() -> None:
    found = {(path.name, name.lower()) for path, text in texts() for name in VARIABLE.findall(text)}
    assert len(found) > 12
    assert [each for each in found if not is_setting(each[1])] == []


def test_every_command_and_option_exists() -> None:
    found = 0
    for path, text in texts():
        for name, rest in COMMAND.findall(text):
            command = main.commands[name]
            known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
            assert set(OPTION.findall(rest)) <= known, f"{path.name}: {name} {rest}"
            found += 1
    assert found > 12


def compose(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return read


def test_compose_files_fit_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.stem)
def test_compose_files_name_what_exists(file: Path) -> None:
    read = compose(file)
    ours = {name: each for name, each in read["services"].items() if each["image"] == "celery-monitor"}
    assert ours
    for name, service in ours.items():
        (command,) = service["command"]
        assert command in main.commands
        assert (file.parent / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert set(service["secrets"]) <= read["secrets"].keys()
        assert {each.rpartition("/")[2] for each in service["environment"].values() if "/run/secrets" in each} == set(
            service["secrets"]
        ), name
    for service in read["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (file.parent / source).exists() if source.startswith(".") else source in read["volumes"]
        assert set(service.get("depends_on", {})) <= read["services"].keys()
        assert all(each.startswith("127.0.0.1:") for each in service.get("ports", ()))


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "prometheus.yaml").read_text(encoding="utf-8")
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/rules", str(DEPLOY / "prometheus")), encoding="utf-8")
    checked = subprocess.run(
        [needs_program("promtool"), "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "2 rule files found" in checked.stdout
    (target,) = yaml.safe_load(text)["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"web:{SETTINGS['port'].default}"


def render(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("helm_python", reason="no wheel of Helm for this platform")
    command = [sys.executable, "-m", "tests.charts"]
    return subprocess.run(
        command, input=json.dumps(values), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def resources(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    done = render(values)
    assert done.returncode == 0, done.stderr
    documents = [each for text in json.loads(done.stdout).values() for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"]["name"].removeprefix("team-celery-monitor")): each for each in documents}


@pytest.mark.parametrize("case", CHARTS)
def test_the_chart_renders_what_kubernetes_accepts(case: str) -> None:
    for (kind, _), each in resources(CHARTS[case]).items():
        if kind != "ServiceMonitor":  # of the Prometheus operator
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_chart_runs_one_pod_with_a_volume() -> None:
    made = resources(CHARTS["volume"])
    assert made.keys() == {("StatefulSet", ""), ("Service", "")}
    pod = made["StatefulSet", ""]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["serve"]


def test_the_chart_runs_receiver_and_pages_apart_on_postgresql() -> None:
    made = resources(CHARTS["postgresql"])
    assert made.keys() == {
        ("Deployment", "-receive"), ("Deployment", "-web"), ("Deployment", "-metrics"),
        ("Service", ""), ("Service", "-metrics"), ("Ingress", ""), ("ServiceMonitor", ""),
    }  # fmt: skip
    pods = {name: each["spec"]["template"] for (kind, name), each in made.items() if kind == "Deployment"}
    args = {name: pod["spec"]["containers"][0]["args"] for name, pod in pods.items()}
    assert args == {"-receive": ["receive"], "-web": ["web"], "-metrics": ["web"]}
    for service, pod in (("", "-web"), ("-metrics", "-metrics")):
        selector = made["Service", service]["spec"]["selector"]
        assert [name for name, each in pods.items() if selector.items() <= each["metadata"]["labels"].items()] == [pod]
    wanted = made["ServiceMonitor", ""]["spec"]["selector"]["matchLabels"].items()
    services = {name: each["metadata"]["labels"] for (kind, name), each in made.items() if kind == "Service"}
    assert [name for name, labels in services.items() if wanted <= labels.items()] == ["-metrics"]
    assert made["ServiceMonitor", ""]["spec"]["endpoints"][0]["path"] == "/monitor/metrics"
    assert made["Ingress", ""]["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/monitor"


@pytest.mark.parametrize("case", CHARTS)
def test_the_charts_pods_have_settings_that_load(case: str, tmp_path: Path) -> None:
    values = {"broker": "redis://redis:6379/0", "basic_auth": "ada:admin:a-long-password", "secret_key": "x" * 40}
    values |= {"database": "postgresql://monitor@db/monitor"}
    for name, value in values.items():
        (tmp_path / name).write_text(value, encoding="utf-8")
    for (kind, _), each in resources(CHARTS[case]).items():
        if kind in {"Deployment", "StatefulSet"}:
            container = each["spec"]["template"]["spec"]["containers"][0]
            environ = {item["name"]: item["value"] for item in container["env"]}
            folder = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "secrets")
            settings = load({}, {name: value.replace(folder, str(tmp_path)) for name, value in environ.items()})
            assert [broker.url for broker in settings.broker] == [values["broker"]]
            assert container["args"][0] in main.commands
            assert container["securityContext"]["readOnlyRootFilesystem"]
            if case == "postgresql":
                given = (settings.keep_tasks, settings.read_only, settings.sample_seconds, settings.database)
                assert given == (1_000_000, True, 2.5, values["database"])
                assert settings.trusted_proxies == ("10.0.0.0/8", "192.168.0.0/16")


@pytest.mark.parametrize(
    "wrong", [{"webs": {}}, {"urlPrefix": "monitor"}, {"web": {"replicas": "two"}}, {"existingSecret": ""}], ids=str
)
def test_the_chart_refuses_wrong_values(wrong: dict[str, Any]) -> None:
    done = render(wrong)
    assert done.returncode == 1
    assert str(next(iter(wrong))) in done.stderr


def test_the_chart_has_the_version_of_the_product() -> None:
    chart = yaml.safe_load((DEPLOY / "helm" / "Chart.yaml").read_text(encoding="utf-8"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (chart["appVersion"], chart["version"]) == (version, version)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_units_and_finds_them_closed(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    text = unit.read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=/opt/celery-monitor/bin/celery-monitor (\w+)$", text, re.MULTILINE)
    assert command in main.commands
    copy = tmp_path / unit.name
    here = text.replace("/opt/celery-monitor/bin/celery-monitor", str(Path(sys.executable).parent / "celery-monitor"))
    copy.write_text(here.replace("EnvironmentFile=", "EnvironmentFile=-"), encoding="utf-8")
    for check in (["verify"], ["security", "--offline=true", f"--threshold={LARGEST_EXPOSURE}"]):
        done = subprocess.run(
            [analyze, "--no-pager", *check, str(copy)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert unit.name not in done.stderr


def test_the_image_is_built_from_files_that_exist() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {line[1:] for line in allowed if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "package.json", "package-lock.json"}
    packages = {each.partition("/")[0] for each in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert copied == needed | packages | {"static", "templates"}
    assert all((ROOT / each).exists() for each in copied)
