"""The names of celery_monitor_capture's queues, and where they are used. No I/O."""

import hashlib
import re

from celery_monitor.addresses import carries_events
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

LONGEST_NAME = 80  # of a queue of SQS


def uses_queues(broker: Broker, settings: Settings) -> bool:
    """Whether events and remote control go through queues of celery_monitor_capture."""
    return settings.source == "queue" or not carries_events(broker.url)


def control_prefix(event_queue: str) -> str:
    """What the names of the control queues begin with. As in celery_monitor_capture/control.py."""
    return f"{event_queue.removesuffix('.fifo')}-control-"


def control_queue(event_queue: str, hostname: str) -> str:
    """The control queue of a worker. As in celery_monitor_capture/control.py."""
    digest = hashlib.sha256(hostname.encode()).hexdigest()[:12]
    prefix = control_prefix(event_queue)
    readable = re.sub("[^A-Za-z0-9_-]", "_", hostname)[: LONGEST_NAME - len(prefix) - len(digest) - 1]
    return f"{prefix}{readable}-{digest}"
