"""Runs benchmarks and writes what they print into docs/benchmarks.md, each table with its command and date.

    python -m benchmarks [--only-print] [NAME ...]

Without a name: those of the summary, in ten minutes. Each is also a script with ``--help``.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
SUMMARY = "summary"

Line = Mapping[str, str]  # of a table: cells by the names of their columns


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A script with its arguments. ``in_summary``: it is short, and one of those that run without being named."""

    script: str
    arguments: str = ""
    in_summary: bool = False

    @property
    def command(self) -> list[str]:
        return [f"benchmarks/{self.script}.py", *shlex.split(self.arguments)]


BENCHMARKS = {
    "rest": Benchmark("bench_rest", "--only redis --seconds 20", in_summary=True),
    "ingest": Benchmark("bench_ingest", "--only redis --rounds 3 --events 30000", in_summary=True),
    "page": Benchmark("bench_page", "--rounds 3", in_summary=True),
    "queries": Benchmark("bench_queries", "--tasks 1000000 --times 20 --flower-tasks 20000", in_summary=True),
    "queries-10": Benchmark("bench_queries", "--tasks 10000000 --without-flower"),
    "sustained": Benchmark("bench_sustained"),
    "burst": Benchmark("bench_burst", "--events 300000"),
    "memory": Benchmark("bench_memory", "--tasks 10000000"),
    "live": Benchmark("bench_live"),
    "demo": Benchmark("bench_demo"),
    "retention": Benchmark("bench_retention", "--tasks 10000000 --surplus 300000 --seconds 75"),
    "storage": Benchmark("bench_storage"),
    "alerts": Benchmark("bench_alerts"),
}


def tables(text: str) -> list[Line]:
    """The lines of all tables in a Markdown text."""
    found: list[Line] = []
    names: list[str] = []
    for line in text.splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            names = []
        elif not names:
            names = cells
        elif not set("".join(cells)) <= {"-", ":"}:
            found.append(dict(zip(names, cells, strict=True)))
    return found


def number(cell: str) -> float:
    """The number that a cell begins with. Raises ValueError where it has none."""
    found = re.match(r"-?[\d,]+(\.\d+)?", cell)
    if found is None:
        raise ValueError(f"{cell!r} begins with no number")
    return float(found[0].replace(",", ""))


def one(lines: Sequence[Line], column: str, **wanted: str) -> float:
    """The number in a column of the only line with these cells. Raises LookupError unless there is one."""
    found = [line[column] for line in lines if all(line.get(name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise LookupError(f"{len(found)} lines with {wanted} have {column!r}")
    return number(found[0])


def compared(what: str, ours: float, theirs: float, unit: str, *, times: float = 1.0, more: bool = False) -> str:
    """A line of the summary beside Flower: at most as much, or with ``more`` at least so many times as much."""
    reached = ours >= times * theirs if more else ours <= theirs
    goal = f"{times:g} × Flower" if more else "at most Flower"
    return _line(what, goal, f"{ours:,g}{unit}", f"{theirs:,g}{unit}", f"{ours / theirs:.2f}", reached)


def bounded(what: str, ours: float, most: float, unit: str) -> str:
    """A line of the summary with a bound of its own."""
    return _line(what, f"{most:g}{unit}", f"{ours:,g}{unit}", "", "", ours <= most)


def _line(what: str, goal: str, ours: str, theirs: str, ratio: str, reached: bool) -> str:
    return f"| {what} | {goal} | {ours} | {theirs} | {ratio} | {'reached' if reached else 'not reached'} |"


def of_rest(lines: Sequence[Line]) -> Iterator[str]:
    for column, what, unit in (
        ("CPU at rest", "at rest, one worker, nobody looking: CPU of a core", " %"),
        ("CPU at 7 tasks/s", "7 tasks/s: CPU of a core", " %"),
        ("first page", "`serve` until the page answers, new record", " s"),
    ):
        yield compared(what, one(lines, column, who="ours"), one(lines, column, who="Flower"), unit)
    yield bounded("memory of all processes", one(lines, "memory", who="ours"), 100, " MB")
    yield bounded("processes", one(lines, "processes", who="ours"), 3, "")


def of_ingest(lines: Sequence[Line]) -> Iterator[str]:
    for events, times in (("10", 10.0), ("1", 5.0)):
        ours, theirs = (one(lines, who, **{"events in a message": events}) for who in ("ours", "Flower"))
        what = f"ingest, events per CPU-second, {events} in a message"
        yield compared(what, ours, theirs, "", times=times, more=True)


def of_page(lines: Sequence[Line]) -> Iterator[str]:
    ours = one(lines, "first paint ms", who="ours", page="tasks", visit="cold")
    yield compared(
        "first paint of the tasks", ours, one(lines, "first paint ms", who="Flower", page="tasks", visit="cold"), " ms"
    )
    yield bounded("the page of tasks, cold", one(lines, "kB", who="ours", page="tasks", visit="cold"), 150, " kB")


def of_queries(lines: Sequence[Line]) -> Iterator[str]:
    """All pages that have a bound, by how many are within it, and the worst of them."""
    judged = [line for line in lines if line["p95 reached"]]
    late = [f"{line['page']} {line['p95 ms']}" for line in judged if line["p95 reached"] != "yes"]
    ours = f"{len(judged) - len(late)} of {len(judged)}" + (f"; above: {', '.join(late)} ms" if late else "")
    theirs = max(number(line["p95 ms"]) for line in lines if line["page"].startswith("Flower"))
    yield _line(
        "pages of 1,000,000 tasks within their bound at p95", "all", ours, f"{theirs:g} ms at most", "", not late
    )


SUMMARIES: dict[str, Callable[[Sequence[Line]], Iterator[str]]] = {
    "rest": of_rest,
    "ingest": of_ingest,
    "page": of_page,
    "queries": of_queries,
}


def run(benchmark: Benchmark) -> str:
    """What the script prints, which is also shown. Raises CalledProcessError."""
    lines = []
    command = [sys.executable, *benchmark.command]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "".join(lines)


def replaced(document: str, name: str, text: str) -> str:
    """The document with another text between the marks of a name. Raises LookupError where it has no such marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, mark, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not mark or not last:
        raise LookupError(f"{DOCUMENT.name} has no {begin.strip()} ... {end}")
    return f"{before}{begin}{text.strip()}\n{end}{after}"


def write(name: str, text: str) -> None:
    """Puts what was printed, without its title, in its place in the document."""
    document = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(replaced(document, name, re.sub(r"^## .*\n+", "", text.strip())), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--only-print", action="store_true", help="leave docs/benchmarks.md as it is")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    began, summary = time.monotonic(), ["| what | reach | ours | Flower | ratio | |\n|---|---|---|---|---|---|"]
    for name in given.names or [name for name, each in BENCHMARKS.items() if each.in_summary]:
        text = run(BENCHMARKS[name])
        summary += SUMMARIES[name](tables(text)) if name in SUMMARIES else []
        if not given.only_print:
            write(name, text)
    if not given.names:
        print("\n", "\n".join(summary), f"\n\n{time.monotonic() - began:.0f} s", sep="")
        if not given.only_print:
            write(SUMMARY, "\n".join(summary))


if __name__ == "__main__":
    main()
