"""The layers of CONTRIBUTING.md: what may import what, where third parties may be imported, and what may print."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "monitor"
PACKAGE = ROOT / "celery_monitor"

# Lower imports from lower only. Modules of one layer may import each other, but in no circle.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("celery_monitor", "celery_monitor.errors", "celery_monitor.records"),
    (
        "celery_monitor.addresses",
        "celery_monitor.core",
        "celery_monitor.files",
        "celery_monitor.settings.flower",
        "celery_monitor.settings",
        "celery_monitor.supervise",
    ),
    (
        "celery_monitor.brokers",
        "celery_monitor.receiver.decode",
        "celery_monitor.receiver.helper_failures",
        "celery_monitor.receiver.sources",
        "celery_monitor.store",
    ),
    ("celery_monitor.control", "celery_monitor.metrics", "celery_monitor.receiver"),
    ("celery_monitor.alerts", "celery_monitor.receiver.process"),
    ("celery_monitor.web",),
    (
        "celery_monitor.__main__",
        "celery_monitor.cli",
        "celery_monitor.demo",
        "celery_monitor.doctor",
        "celery_monitor.serve",
    ),
)
CONFINED = {
    "sqlalchemy": ("celery_monitor.store",),
    "alembic": ("celery_monitor.store",),
    "psycopg": ("celery_monitor.store",),
    "celery": ("celery_monitor.receiver.sources", "celery_monitor.brokers", "celery_monitor.control"),
    "kombu": (
        "celery_monitor.receiver.decode",
        "celery_monitor.receiver.sources",
        "celery_monitor.brokers",
        "celery_monitor.control",
    ),
    "amqp": ("celery_monitor.receiver.sources", "celery_monitor.brokers", "celery_monitor.control"),
    "starlette": ("celery_monitor.web",),
    "jinja2": ("celery_monitor.web",),
    "uvicorn": ("celery_monitor.web",),
    "apprise": ("celery_monitor.alerts",),
    "click": ("celery_monitor.cli",),
    "demo_workers": ("celery_monitor.demo",),
    "celery_monitor_capture": (),  # it runs in the workers
}
MOST_MODULES = 15  # of a folder
LONGEST_CHAIN = 14  # of modules, each of which imports the next
STORE_ORDER = ("schema", "engine")  # every other module of store/ may import these; they import none of it


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def inside(name: str, parents: tuple[str, ...] | set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def layer_of(name: str) -> int:
    """The layer with the longest entry that holds the module."""
    found = [
        (len(entry), number)
        for number, entries in enumerate(LAYERS)
        for entry in entries
        if inside(name, (entry,)) and (entry != "celery_monitor" or name == "celery_monitor")
    ]
    if not found:
        raise LookupError(f"{name} stands in no layer: give it one in {Path(__file__).name}")
    return max(found)[1]


@cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    """All of a module's tree. Each test looks at it, so it is walked once."""
    return tuple(ast.walk(MODULES[name]))


@cache
def imports(name: str) -> frozenset[str]:
    """Modules that a module imports, by their full names."""
    return frozenset(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in nodes(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def own_imports(name: str) -> set[str]:
    return {each for each in imports(name) if each in MODULES and each != name}


def test_imports_point_downward() -> None:
    for name in MODULES:
        upward = {each for each in own_imports(name) if each != "celery_monitor" and layer_of(each) > layer_of(name)}
        assert not upward, f"{name} imports from above: {upward}"


def test_no_import_goes_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for each in own_imports(name):
                visit(each, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_chains_of_imports_are_short() -> None:
    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max(map(chain, own_imports(name)), key=len, default=()))

    longest = max(map(chain, MODULES), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


def test_third_parties_stand_where_they_belong() -> None:
    for name in MODULES:
        strangers = {
            each
            for each in imports(name)
            if (party := each.partition(".")[0]) in CONFINED and not inside(name, CONFINED[party])
        }
        assert not strangers, f"{name} imports {strangers}"


def test_no_import_hides_in_a_function() -> None:
    for name in MODULES:
        checks = [each for each in MODULES[name].body if isinstance(each, ast.If)]  # for type checkers
        allowed = {each.lineno for check in checks for each in check.body}
        found = (each for each in nodes(name) if isinstance(each, ast.Import | ast.ImportFrom))
        hidden = [each.lineno for each in found if each.col_offset and each.lineno not in allowed]
        assert not hidden, f"{name} imports inside, in the lines {hidden}"


def test_only_the_command_line_prints() -> None:
    for name in set(MODULES) - {"celery_monitor.cli"}:
        called = {ast.unparse(each.func) for each in nodes(name) if isinstance(each, ast.Call) and is_short(each.func)}
        assert not called & {"print", "sys.stdout.write", "sys.stderr.write"}, f"{name} prints"


def is_short(function: ast.expr) -> bool:
    """Whether it may be one of those that print: a name, or a ``write``."""
    return isinstance(function, ast.Name) or (isinstance(function, ast.Attribute) and function.attr == "write")


def test_the_ground_of_the_store_imports_nothing_above_it() -> None:
    for name in MODULES:
        if name.startswith("celery_monitor.store.") and name.split(".")[2] in STORE_ORDER:
            others = {each.split(".")[2] for each in own_imports(name) if each.startswith("celery_monitor.store.")}
            allowed = set(STORE_ORDER) | {"migrations"}
            assert others <= allowed, f"{name} imports {others - allowed}"


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for name, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {each: names for each, names in found.items() if len(names) > 1} == {}


def test_pages_never_import_each_other() -> None:
    for name in MODULES:
        if name.startswith("celery_monitor.web.pages."):
            assert not {each for each in own_imports(name) if each.startswith("celery_monitor.web.pages.")}, name


def test_every_entry_exists() -> None:
    entries = {entry for layer in LAYERS for entry in layer}
    assert entries | {parent for parents in CONFINED.values() for parent in parents} <= set(MODULES)


def test_folders_stay_small_enough_to_read() -> None:
    for folder in {PACKAGE, *(path.parent for path in PACKAGE.rglob("*.py"))}:
        if folder.name != "versions":  # where each migration is one
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MOST_MODULES, f"{folder}: {len(modules)}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/internals.md", "docs/settings.md", "docs/filters.md"])
def test_documents_name_files_that_exist(document: str) -> None:
    home = ROOT.parent
    named = re.findall(r"(?<![\w/.<])(?:[a-z_]+/)+[a-z_]+\.py\b", (home / document).read_text(encoding="utf-8"))
    assert named
    missing = {each for each in named if not any((base / each).exists() for base in (home, PACKAGE))}
    assert missing - {"celery/worker/control.py"} == set()  # of Celery
