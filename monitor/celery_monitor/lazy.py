"""Libraries that are large and rarely needed, loaded when they are first used: a process at rest pays for none."""

from importlib import import_module


class Lazy:
    """Stands for a module until something of it is used. A type checker has to see the import itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(import_module(self._name), attribute)
