"""A task's id in as few bytes as possible.

Celery's own ids are UUIDs in canonical form: 16 bytes. Any other string is kept as UTF-8 behind a NUL
(two where that would make 16), which no stored id begins with: NUL is replaced before storage.
"""

_UUID_LENGTH = 16
_LENGTH_AS_TEXT = 36


def to_key(task_id: str) -> bytes:
    """The bytes that stand for a task id; ``from_key`` gives the id back."""
    if len(task_id) == _LENGTH_AS_TEXT and task_id[8:24:5] == "----":
        digits = task_id.replace("-", "")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if key.hex() == digits:  # neither capitals nor spaces, which fromhex takes too
            return key
    key = b"\0" + task_id.encode()
    return b"\0" + key if len(key) == _UUID_LENGTH else key


def from_key(key: bytes) -> str:
    """The task id that ``to_key`` was given."""
    if len(key) == _UUID_LENGTH:
        text = bytes(key).hex()  # a workflow has ten thousand of them, and UUID takes four times as long
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    return bytes(key).lstrip(b"\0").decode()
