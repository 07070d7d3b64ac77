"""A part that fails is a note; an error about the whole page passes."""

import pytest
from jinja2 import Environment

from celery_monitor.errors import NotFound
from celery_monitor.web.problems import MOST_LOGGED, FailureLog, PartFailed, guarded, read_part


def fail(error: Exception) -> dict[str, object]:
    raise error


def test_value_that_was_not_read_fails_only_where_it_is_used() -> None:
    context = read_part(lambda: fail(ValueError("x")), "rows", "total")
    template = Environment().from_string("{% block a %}{{ rows | length }}{% endblock %}-{% block b %}ok{% endblock %}")
    prepared = template.new_context(context)
    prepared.blocks["a"] = [guarded("page.html", "a", prepared.blocks["a"][0])]
    html = "".join(template.root_render_func(prepared))
    assert html.endswith("-ok")
    assert "This part cannot be shown: a" in html
    assert "ValueError." in html
    with pytest.raises(PartFailed):
        bool(context["total"])


def test_note_escapes_what_it_quotes() -> None:
    kind = type("<b>", (Exception,), {})
    html = "".join(guarded("page.html", "a", lambda _: fail(kind()))(None))  # type: ignore[arg-type,return-value]
    assert "&lt;b&gt;." in html


def test_error_about_the_page_passes() -> None:
    with pytest.raises(NotFound):
        read_part(lambda: fail(NotFound("gone")), "rows")
    with pytest.raises(NotFound):
        list(guarded("page.html", "a", lambda _: fail(NotFound("gone")))(None))  # type: ignore[arg-type,return-value]


def test_kinds_of_failures_are_logged_once_and_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    for number in range(MOST_LOGGED + 5):
        failures.note(f"part {number}", ValueError("x"))
        failures.note(f"part {number}", ValueError("y"))
    assert len(caplog.records) == MOST_LOGGED
