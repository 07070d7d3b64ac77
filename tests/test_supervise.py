"""Child processes of the dashboard: what they are when they start."""

import sys
from pathlib import Path
from threading import Event

from monitor.supervise import python_job


def write_main_module(file: Path, _stop: Event) -> None:
    file.write_text(str(getattr(sys.modules["__main__"], "__file__", "none")), encoding="utf-8")


def test_child_imports_what_it_runs_and_not_its_parents_main_module(tmp_path: Path) -> None:
    before = sys.modules["__main__"]
    process = python_job("modules", "warning", write_main_module, tmp_path / "main").start()
    process.join(60)
    assert (tmp_path / "main").read_text(encoding="utf-8") == "none"
    assert sys.modules["__main__"] is before
