"""Which keys name a secret.

Most words do so wherever they stand in a key: ``password`` in ``db_PassWord_2``. A few are also parts of ordinary words
(``auth`` of author, ``pass`` of passenger and bypass), so they count only as a part of their own: between joints
(``_``, ``-``, ``.``, a digit, a capital letter in camelCase), or behind a usual prefix without a joint (``dbpass``).
What such a part describes is no secret: ``session_count``, ``auth_type``, ``SessionError``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

SECRET_KEYS = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "cookie",
    "credential",
    "auth",
    "pwd",
    "pass",
    "bearer",
    "session",
    "jwt",
    "dsn",
)
PARTS = frozenset({"auth", "pwd", "pass", "bearer", "session", "jwt", "dsn"})  # only as a part of their own
_PREFIXES = "o|db|user|my|pg|ftp|smtp|ssh|root|http|basic|proxy|j"
_SUFFIXES = "ids?|keys?|code|phrase|data|string|header|value"
_DESCRIBES = (
    "counts?|total|numbers?|num|rate|ratio|size|length|limit|max|min|seconds|minutes|hours|days|ttl|age|timeout|"
    "duration|expires|expired|expiry|type|method|mode|kind|scheme|status|errors?|exception|warning|failed|failures?|"
    "invalid|required|enabled|idle"
)
_LETTER = r"[^\W\d_]"
_LEFT = rf"(?:(?<!{_LETTER})|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\\[nrt]))"
_RIGHT = rf"(?:(?!{_LETTER})|(?<=[a-z])(?=[A-Z]))"
# The rest of the key, its closing quote and an assignment that goes on in the same line, unlike ``with x as session:``.
_ASSIGNED = r"""(?=[\w.\[\]-]{0,64}+\\*['"]?[ \t]{0,16}+(?:=>|[:=,])(?![ \t]{0,16}\n))"""


def key_pattern(keys: Sequence[str]) -> re.Pattern[str]:
    """Finds the words in a text that name a secret."""
    anywhere = sorted(shortest({form for key in keys if not _is_part(key) for form in forms(key)}))
    parts = sorted({key.strip().lower() for key in keys if _is_part(key)})
    choices = [f"(?i:{'|'.join(map(re.escape, anywhere))})"] if anywhere else []
    if parts:
        words = "|".join(map(re.escape, parts))
        described = rf"(?!(?i:[_-]?(?:{_DESCRIBES}))(?![\w-]))"
        named = rf"(?i:(?:{_PREFIXES})?(?:{words})(?:{_SUFFIXES})?)"
        choices.append(f"{_LEFT}{named}{_RIGHT}{described}{_ASSIGNED}")
    return re.compile("|".join(choices) or r"(?!)")


def pieces(keys: Iterable[str]) -> tuple[str, ...]:
    """Few lower-case texts of which every text that names a secret has one: ``key`` for api_key and access-key."""
    return tuple(shortest({_last_part(key) for key in keys if key.strip()}))


def words(keys: Iterable[str]) -> tuple[str, ...]:
    """Lower-case texts of which every text that names a secret has one; closer than ``pieces``."""
    return tuple(sorted(shortest({form for key in keys for form in forms(key)})))


def shortest(texts: set[str]) -> Iterator[str]:
    """Without texts that contain another one, which finds them, too."""
    return (text for text in texts if not any(other in text for other in texts - {text}))


def forms(key: str) -> tuple[str, ...]:
    """``api_key`` is also written ``api-key``, ``api key`` and ``apiKey``."""
    key = key.strip().lower()
    return tuple(key.replace("-", "_").replace("_", joint) for joint in ("_", "-", " ", "")) if key else ()


def _is_part(key: str) -> bool:
    return key.strip().lower() in PARTS


def _last_part(key: str) -> str:
    """The part after the last joint; the empty text, which every text contains, if there is none."""
    return key.strip().lower().replace("-", "_").strip("_").rpartition("_")[2]
