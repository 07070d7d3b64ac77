"""Names in addresses: what stands for a task, queue or worker is any text, line ends and slashes too."""

from starlette.convertors import Convertor
from starlette.convertors import register_url_convertor


class NameConvertor(Convertor[str]):
    """As Starlette's ``path``, whose dot stops at a line end."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def register() -> None:
    """Lets routes say ``{id:name}``."""
    register_url_convertor("name", NameConvertor())
