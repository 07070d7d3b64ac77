"""What somebody may see: a scope of clusters, queues and task names in the language of filters, and arguments or not.

    cluster:eu queue:emails,mail-*

Terms of one field joined by ``OR``, or listed with commas, allow each other; terms of different fields must all hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import Any, Expression, Match, between_quotes
from celery_monitor.errors import FilterError, InvalidInput
from celery_monitor.records.user import Actor

FIELDS = ("cluster", "queue", "name")
LONGEST = 1000
HIDDEN = "hidden"  # in place of arguments, results and errors
_listed = re.compile(r"(?<![^\s(])(cluster|queue|name):([^\s()]*,[^\s()]*)")


@dataclass(frozen=True, slots=True)
class Scope:
    """Conditions that all hold for what is inside; none: everything. ``str`` is text that ``parse_scope`` reads."""

    terms: tuple[Expression, ...] = ()

    def __str__(self) -> str:
        choices = [list(map(_text, options_of(term))) for term in self.terms]
        return " ".join(f"({' OR '.join(each)})" if len(each) > 1 else each[0] for each in choices)

    @property
    def is_partial(self) -> bool:
        """Whether it divides clusters: by queue or by task name."""
        return any(self._of("queue")) or any(self._of("name"))

    def allows(self, field: str, value: str | None) -> bool:
        """Whether its conditions on one field allow the value; what is unknown is allowed only without conditions."""
        return all(
            value is not None and any(option.pattern.matches(value) for option in options)
            for options in self._of(field)
        )

    def covers(self, cluster: str | None) -> bool:
        """Whether all of a cluster is inside; ``None``: of every cluster."""
        return not self.is_partial and self.allows("cluster", cluster)

    def has_queue(self, cluster: str, queue: str | None) -> bool:
        """Whether a queue is inside. A scope of task names has no queue: other tasks wait there too."""
        return not any(self._of("name")) and self.allows("cluster", cluster) and self.allows("queue", queue)

    def has_task(self, cluster: str, name: str | None, queue: str | None) -> bool:
        return self.allows("cluster", cluster) and self.allows("name", name) and self.allows("queue", queue)

    def _of(self, field: str) -> Iterator[tuple[Match, ...]]:
        for term in self.terms:
            options = options_of(term)
            if options[0].field == field:
                yield options


def _text(condition: Match) -> str:
    """With a comma between quotes, where it lists nothing."""
    if not any("," in piece for piece in condition.pattern.pieces):
        return str(condition)
    return f"{condition.field}:{'*'.join(between_quotes(each) if each else '' for each in condition.pattern.pieces)}"


def options_of(term: Expression) -> tuple[Match, ...]:
    """The conditions of one field, of which one has to hold. Raises InvalidInput for anything else."""
    options = term.terms if isinstance(term, Any) else (term,)
    matches = tuple(each for each in options if isinstance(each, Match) and each.field in FIELDS)
    if len(matches) < len(options) or len({each.field for each in matches}) != 1:
        raise InvalidInput(
            f"a scope has conditions on {', '.join(FIELDS)} alone, each with its own choice, "
            f"such as cluster:eu queue:emails,mail-*; not {term}",
            field="scope",
        )
    return matches


@lru_cache(maxsize=256)
def parse_scope(text: str) -> Scope:
    """The scope of a text; empty: everything. Raises InvalidInput."""
    if len(text) > LONGEST:
        raise InvalidInput(f"a scope has at most {LONGEST} characters", field="scope")
    expanded = text if '"' in text else _listed.sub(_choice, text)
    try:
        terms = parse(expanded, 0.0).terms
    except FilterError as error:
        raise InvalidInput(f"this scope is not valid: {error.message}", field="scope") from None
    for term in terms:
        options_of(term)
    return Scope(terms)


def _choice(listed: re.Match[str]) -> str:
    return f"({' OR '.join(f'{listed[1]}:{each}' for each in listed[2].split(','))})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader of the record is shown. ``actor`` names the user, for what belongs to this user alone."""

    scope: Scope = Scope()
    arguments: bool = True
    actor: str = ""


UNLIMITED = Limits()


def limits_of(actor: Actor) -> Limits:
    """What is shown to a user. Raises InvalidInput for a scope that cannot be read."""
    scope = parse_scope(actor.scope)
    return Limits(scope, actor.sees_arguments, actor.name if scope.terms else "")
