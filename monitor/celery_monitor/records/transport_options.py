"""The options of kombu's transports whose values have a type (``--broker-options``); of others kombu decides."""

from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Timeout = Annotated[float, Meta(gt=0, le=1e9)]
AtLeastOne = Annotated[int, Meta(ge=1)]


class TransportOptions(Struct):
    """As kombu/transport/redis.py, virtual/base.py and pyamqp.py read them. A value of another type ends in a TypeError
    there, at whatever is done first."""

    # Redis
    visibility_timeout: Seconds = 3600
    unacked_mutex_expire: Seconds = 300
    unacked_restore_limit: AtLeastOne | None = None
    health_check_interval: Seconds | None = None
    max_connections: AtLeastOne | None = None
    priority_steps: list[int] = []
    queue_order_strategy: Annotated[str, Meta(pattern=r"^(round_robin|priority|sorted|[\w.]+[.:]\w+)$")] = "round_robin"
    sep: str = ""
    global_keyprefix: str = ""
    unacked_key: str = ""
    unacked_index_key: str = ""
    unacked_mutex_key: str = ""
    fanout_prefix: bool | str = True
    fanout_patterns: bool = True
    socket_timeout: Timeout | None = None
    socket_connect_timeout: Timeout | None = None
    socket_keepalive: bool | None = None
    socket_keepalive_options: dict[int, int] = {}  # by socket.TCP_KEEPIDLE and so on
    retry_on_timeout: bool | None = None
    master_name: str = ""
    sentinel_kwargs: dict[str, object] | None = None
    # RabbitMQ
    read_timeout: Timeout | None = None
    write_timeout: Timeout | None = None
    connect_timeout: Timeout | None = None
    heartbeat: Seconds | None = None
    confirm_publish: bool = False
    # every transport
    max_retries: int | None = None
    interval_start: Seconds = 0
    interval_step: Seconds = 0
    interval_max: Seconds = 0
    polling_interval: Seconds | None = None
