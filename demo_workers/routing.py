"""Dedicated queues, so that slow tasks never block quick ones, and priorities within a queue.

A task goes to the queue of its route; a worker consumes the queues of ``-Q``.
"""

from kombu.entity import Exchange, Queue

EXCHANGE = Exchange("demo-shop", type="direct")
DEFAULT_QUEUE = "demo-shop.orders"
MAX_PRIORITY = 9


def queue(name: str) -> Queue:
    """RabbitMQ needs the maximum priority of a queue; Redis has a list for each step of priorities."""
    return Queue(name, EXCHANGE, routing_key=name, queue_arguments={"x-max-priority": MAX_PRIORITY})


QUEUES = [queue(DEFAULT_QUEUE), queue("demo-shop.payments"), queue("demo-shop.warehouse")]

ROUTES = {
    "payments.*": {"queue": "demo-shop.payments"},
    "warehouse.*": {"queue": "demo-shop.warehouse"},
    # All other tasks go to DEFAULT_QUEUE. A newsletter has a lower priority than other mail
    # (on RabbitMQ 9 is the most urgent priority, on Redis it is 0).
    "mail.newsletter": {"queue": DEFAULT_QUEUE, "priority": 3},
}
