"""Dedicated queues, so that slow work never stands in the way of quick work, and priorities within a queue.

A task goes to the queue that its route names; a worker serves the queues after ``-Q``.
"""

from kombu.entity import Exchange, Queue

EXCHANGE = Exchange("demo-shop", type="direct")
DEFAULT_QUEUE = "demo-shop.orders"
MAX_PRIORITY = 9


def queue(name: str) -> Queue:
    """RabbitMQ must be told how many priorities a queue has; Redis keeps a list for each few of them."""
    return Queue(name, EXCHANGE, routing_key=name, queue_arguments={"x-max-priority": MAX_PRIORITY})


QUEUES = [queue(DEFAULT_QUEUE), queue("demo-shop.payments"), queue("demo-shop.warehouse")]

ROUTES = {
    "payments.*": {"queue": "demo-shop.payments"},
    "warehouse.*": {"queue": "demo-shop.warehouse"},
    # Whatever matches nothing goes to DEFAULT_QUEUE. A newsletter can wait for every other mail
    # (on RabbitMQ 9 is the most urgent priority, on Redis it is 0).
    "mail.newsletter": {"queue": DEFAULT_QUEUE, "priority": 3},
}
