"""Several workers, each for its own queues and with its own number of processes.

Payments wait for the bank, so a few processes are enough; the warehouse has busy hours, so its pool grows and shrinks
by itself (``--autoscale=most,least``). A second worker of the same kind needs another name (``-n``) and nothing else.
"""

WORKERS = {
    "orders": ("-Q", "demo-shop.orders", "--concurrency=2"),
    "payments": ("-Q", "demo-shop.payments", "--concurrency=2"),
    "warehouse": ("-Q", "demo-shop.warehouse", "--autoscale=4,2"),
}


def worker_arguments(name: str) -> list[str]:
    """What comes after ``celery -A demo_workers``. Gossip and mingle only cost time when workers start together."""
    return ["worker", "-E", "-n", f"{name}@%h", "-l", "INFO", "--without-gossip", "--without-mingle", *WORKERS[name]]
