"""An application with configuration of its own, as users give with -A."""

from celery import Celery

app = Celery("configured", broker="redis://elsewhere:6398/7", set_as_current=False)
app.conf.update(
    event_exchange="shopev",
    task_default_queue="shop-default",
    broker_transport_options={"global_keyprefix": "conf:", "sep": "|"},
)
