"""A sample shop on Celery: each module shows one topic, and some misbehave on purpose.

Start all of it with ``celery-monitor demo``, or a part with ``celery -A demo_workers worker -Q demo-shop.orders``.

==============  ==================================================================================
app.py          the application and its configuration
mail.py         first tasks
payments.py     retries with back-off and jitter, error handling, idempotency
warehouse.py    time limits, late acknowledgement, rejecting
routing.py      dedicated queues and priorities
schedule.py     beat: intervals and crontabs
workflows.py    chains, groups and chords
reminders.py    ETA, countdown and expiry
scaling.py      several workers, concurrency and autoscale
misbehave.py    what goes wrong in real life: crashes, stuck tasks, ugly data
traffic.py      the customers
==============  ==================================================================================
"""

from demo_workers.app import app

__all__ = ["app"]
