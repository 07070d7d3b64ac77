"""celery-monitor: what a Celery cluster does, kept truthfully and shown live."""

from pkgutil import resolve_name


def __getattr__(name: str) -> str:
    """``__version__``, read when it is asked for: importlib.metadata is as large as a supervisor needs to be."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return str(resolve_name("importlib.metadata:version")("celery-monitor"))
    except ModuleNotFoundError:  # PackageNotFoundError: a source tree that was never installed
        return "0+unknown"
