"""What people read has no turn that sounds translated: pages, scripts, messages, help and documents.

A turn is found in texts alone: not in comments, docstrings, names of columns or code. ``WORDS`` says what to write.
"""

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monitor" / "celery_monitor"
WORDS = {
    r"made of": "from",
    r"mend(?:s|ed|ing)?": "fix",
    r"look at (?:it|them)": "check, or open",
    r"(?:was|were|is|are|been|be) (?:told|heard)|told by|heard (?:of|from)": "reported, recorded, seen",
    r"in hand": "current",
    r"throw(?:s|n)? away": "delete",
    r"shall": "will, must",
    r"it is no more|is no more than": "the noun, and what happened to it",
    r"it holds (?:on|for)": "applies to",
    r"(?:nothing that|what) is known": "known",
    r"stands? still": "stalled",
    r"takes? (?:no more )?from": "consume",
    r"cannot be told apart": "indistinguishable",
    r"is no (?:duration|URL|number|whole number|state|time)": "is not a ...",
    r"known are": "use one of",
    r"write for example": "for example",
    r"finds nothing": "no tasks match",
    r"it did not say|tells nobody": "no answer; does not report",
    r"hands? back": "returns",
    r"as fast as it goes": "no limit",
    r"left alone": "not included, not sent",
    r"nobody has to sign in": "sign-in is off",
    r"at work on": "processing",
    r"all the same": "still",
    r"that much out of date": "out of date by that much",
    r"the most (?:there can be|that can be|that are)": "the limit, the most allowed",
    r"goes before": "overrides",
    r"read back from": "rebuilt from",
}
IN_PAGES = WORDS | {
    r"at once": "immediately, now; both, together",
    r"not known": "unknown",
    r"who|to what": "user, target (as the whole of a label)",
}
WHOLE = {r"who|to what"}
SHOWN_ATTRIBUTES = {"title", "aria-label", "placeholder", "alt", "value", "data-confirm"}
# Figures as measured; the others are not yet rewritten in these words.
NOT_READ = {"benchmarks.md", "alerts.md", "capture.md", "flower.md", "operations.md"}
ALLOWED = {
    "at most {} are allowed at once.",
    "both limits at once",
}


class _Texts(HTMLParser):
    """Texts and attributes of a template that a person reads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code += tag in {"script", "style"}
        self.found += [value for name, value in attrs if value and name in SHOWN_ATTRIBUTES]

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.found.append(data)


def texts_of_template(source: str) -> Iterator[str]:
    """Text between tags, attributes that are shown, and the literals of expressions."""
    parser = _Texts()
    parser.feed(re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", source, flags=re.DOTALL))
    parser.close()
    yield from parser.found
    for expression in re.findall(r"\{[%{].*?[%}]\}", source, flags=re.DOTALL):
        yield from re.findall(r'"([^"]*)"', expression)


def texts_of_script(source: str) -> Iterator[str]:
    """String literals, without comments."""
    code = re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", source, flags=re.DOTALL)
    yield from re.findall(r'"([^"\n]*)"', code)
    yield from re.findall(r"`([^`]*)`", code)


def texts_of_module(source: str) -> Iterator[str]:
    """String constants and f-strings; no docstrings: those of actions are shown in docs/actions.md, which is read."""
    tree = ast.parse(source)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def texts_of_document(source: str) -> Iterator[str]:
    """Paragraphs, without code."""
    yield from re.sub(r"```.*?```|`[^`\n]*`", " ", source, flags=re.DOTALL).split("\n\n")


def wrong_turns(texts: Iterator[str], words: dict[str, str]) -> list[str]:
    """One line for each forbidden turn in the texts: the turn, what to write, and the text."""
    found = []
    for text in texts:
        line = " ".join(text.split())
        if any(each in line for each in ALLOWED):
            continue
        for turn, instead in words.items():
            pattern = rf"(?:{turn})" if turn in WHOLE else rf"\b(?:{turn})\b"
            match = (re.fullmatch if turn in WHOLE else re.search)(pattern, line, re.IGNORECASE)
            if match:
                found.append(f"{match.group()!r}, better: {instead}: {line[:200]}")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "templates").glob("*.html")), ids=lambda path: path.name)
def test_page_has_no_forbidden_turn(path: Path) -> None:
    assert wrong_turns(texts_of_template(path.read_text()), IN_PAGES) == []


@pytest.mark.parametrize("path", sorted((ROOT / "static").glob("*.js")), ids=lambda path: path.name)
def test_script_has_no_forbidden_turn(path: Path) -> None:
    assert wrong_turns(texts_of_script(path.read_text()), IN_PAGES) == []


def test_messages_and_help_have_no_forbidden_turn() -> None:
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in sorted(PACKAGE.rglob("*.py"))
        if "migrations" not in path.parts and (wrong := wrong_turns(texts_of_module(path.read_text()), WORDS))
    }
    assert found == {}


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_document_has_no_forbidden_turn(path: Path) -> None:
    if path.name not in NOT_READ:
        assert wrong_turns(texts_of_document(path.read_text()), WORDS) == []


@pytest.mark.parametrize(
    ("read", "source"),
    [
        (texts_of_template, '<p title="Throw away this message">x</p>'),
        (texts_of_template, "<h2>In hand</h2>"),
        (texts_of_template, '{{ icon("x") if y else "It shall never run" }}'),
        (texts_of_script, 'button.title = "Look at it";'),
        (texts_of_script, "const text = `made of ${parts}`;"),
        (texts_of_module, 'raise InvalidInput(f"{kind!r} is no duration; known are {units}")'),
        (texts_of_document, "The sentence is\nmade of findings."),
    ],
)
def test_forbidden_turn_is_found_wherever_it_is_shown(read: object, source: str) -> None:
    assert callable(read)
    assert wrong_turns(read(source), IN_PAGES)


@pytest.mark.parametrize(
    ("read", "source"),
    [
        (texts_of_template, "{# made of parts #}<p>ok</p>"),
        (texts_of_script, '// mend this\nconst a = "ok";'),
        (texts_of_module, '"""Made of findings."""'),
        (texts_of_document, "```\nmade of\n```"),
    ],
)
def test_comments_and_code_are_not_read(read: object, source: str) -> None:
    assert callable(read)
    assert wrong_turns(read(source), IN_PAGES) == []
