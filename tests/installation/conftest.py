"""The environments, each made once."""

from pathlib import Path

import pytest

from tests.installation.environments import (
    CAPTURE,
    EXTRA,
    NEWEST_WORKER,
    OLDEST_WORKER,
    OLDEST_WORKER_PYTHONS,
    ROOT,
    build_from_sdist,
    find_python,
    install_alone,
    make_environment,
    requirements,
)

NEWEST_PYTHONS = ("3.14", "3.13", "3.12")
OLDEST_PYTHONS = ("3.11",)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_from_sdist(ROOT, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def capture_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_from_sdist(CAPTURE, tmp_path_factory.mktemp("capture"))


@pytest.fixture(scope="session")
def newest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the newest of all that it requires."""
    home = tmp_path_factory.mktemp("newest") / "environment"
    return make_environment(home, find_python(NEWEST_PYTHONS), f"celery-monitor[{EXTRA}] @ {wheel.as_uri()}")


@pytest.fixture(scope="session")
def lowest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the oldest of all that it admits."""
    home = tmp_path_factory.mktemp("lowest") / "environment"
    python = make_environment(home, find_python(OLDEST_PYTHONS), *requirements(wheel), lowest=True)
    install_alone(python, wheel)
    return python


@pytest.fixture(scope="session")
def oldest_worker(capture_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("oldest-worker") / "environment"
    return make_environment(home, find_python(OLDEST_WORKER_PYTHONS), *OLDEST_WORKER, str(capture_wheel))


@pytest.fixture(scope="session")
def newest_worker(capture_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("newest-worker") / "environment"
    return make_environment(home, find_python(NEWEST_PYTHONS), *NEWEST_WORKER, str(capture_wheel))
