"""Deletes the shop's queues from a broker that outlives the shop: ``python -m demo_workers.clean [other queues]``."""

import logging
import sys
from collections.abc import Iterable

from amqp.exceptions import ChannelError

from demo_workers.app import app
from demo_workers.routing import EXCHANGE, QUEUES

logger = logging.getLogger(__name__)


def clean(others: Iterable[str] = ()) -> None:
    """Deletes the queues with what is in them, and the shop's exchange."""
    with app.connection_for_write() as connection:
        for name in [*(queue.name for queue in QUEUES), *others]:
            with connection.channel() as channel:
                try:
                    channel.queue_delete(name)
                except ChannelError as error:
                    logger.info("queue %s: %s", name, error)
        with connection.channel() as channel:
            channel.exchange_delete(EXCHANGE.name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    clean(sys.argv[1:])
