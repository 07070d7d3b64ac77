"""An application whose result backend keeps arguments, under a prefix of its own; for ``--app``."""

import os

from celery import Celery

PREFIX = "extended-"
app = Celery("extended", set_as_current=False)
app.conf.update(
    result_backend=os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"),
    result_extended=True,
    result_backend_transport_options={"global_keyprefix": PREFIX},
)
