"""celery-monitor: what a Celery cluster does, kept truthfully and shown live."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("celery-monitor")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
