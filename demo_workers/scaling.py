"""Several workers with their own queues and numbers of processes.

Payments wait for the bank, so a few processes are enough; the warehouse has busy hours, so its pool scales
automatically (``--autoscale=max,min``). A second worker of the same kind only needs another name (``-n``).
"""

WORKERS = {
    "orders": ("-Q", "demo-shop.orders", "--concurrency=2"),
    "payments": ("-Q", "demo-shop.payments", "--concurrency=2"),
    "warehouse": ("-Q", "demo-shop.warehouse", "--autoscale=4,2"),
}


def worker_arguments(name: str) -> list[str]:
    """Arguments after ``celery -A demo_workers``. Gossip and mingle would only delay the start."""
    return ["worker", "-E", "-n", f"{name}@%h", "-l", "INFO", "--without-gossip", "--without-mingle", *WORKERS[name]]
