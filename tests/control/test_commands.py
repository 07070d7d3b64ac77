"""One Struct is the whole of a command: its limits, its request body and its form follow from it."""

from typing import Any

import pytest

from celery_monitor.control import COMMANDS
from celery_monitor.control.commands import Command, given_fields
from celery_monitor.control.queues import ReadQueue
from celery_monitor.control.revoke import RevokeStamped
from celery_monitor.control.workers import Autoscale, CancelConsumer, RateLimit, TimeLimit
from celery_monitor.errors import InvalidInput
from celery_monitor.records.user import Role
from celery_monitor.web.api import OPERATIONS
from celery_monitor.web.api.operation import body_of
from celery_monitor.web.pages import command_of


class Explode(Command, frozen=True, kw_only=True):
    """Something of which nobody said who may do it."""

    action = "worker.explode"


def test_admins_alone_may_do_what_names_no_role() -> None:
    assert Explode.role is Role.ADMIN


def test_each_command_with_a_route_has_its_operation() -> None:
    routes = {f"/api/v1/{command.route}" for command in COMMANDS if command.route}
    assert len(routes) == 36
    assert routes <= {operation.path for operation in OPERATIONS if operation.method == "POST"}


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.body != "ReasonBody"], ids=lambda each: each.__name__
)
def test_commands_that_share_a_body_have_its_fields(command: type[Command]) -> None:
    assert body_of(command).__struct_fields__ == tuple(each.name for each in given_fields(command))
    assert body_of(command).__doc__


TO: dict[str, Any] = {"cluster": "shop", "workers": ("a@shop",)}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (ReadQueue(cluster="shop", queue="emails", limit=201), "limit 201 is not between 1 and 200"),
        (Autoscale(**TO, maximum=1001, minimum=0), "maximum 1001 is not between 1 and 1000"),
        (Autoscale(**TO, maximum=7, minimum=-1), "minimum -1 is not between 0 and 1000"),
        (TimeLimit(**TO, task="pay", soft=0, hard=None), "soft 0 is not between 0 and 31536000 seconds"),
        (TimeLimit(**TO, task="pay", soft=None, hard=float("inf")), "hard inf is not between 0 and 31536000 seconds"),
        (CancelConsumer(**TO, queue="é" * 128), "queue must have 1 to 255 bytes"),
        (RateLimit(**TO, task="pay", rate="5/m\n"), "write 10/s, 5/m, 100/h, or 0 for no limit"),
        (RevokeStamped(cluster="shop", header="batch", stamps=("",)), "stamp must have 1 to 255 bytes"),
        (RevokeStamped(cluster="shop", header="batch", stamps=("7",) * 1001), "1001 stamps were given; give 1 to 1000"),
    ],
)
def test_value_beyond_its_limits_is_refused_with_them(command: Command, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        command.check()
    assert says in caught.value.message


def test_form_is_read_by_the_types_of_the_fields() -> None:
    form = {"of_cluster": "mail", "task": " pay ", "soft": "", "hard": " 2.5", "reason": "  ", "workers": "b@mail"}
    assert command_of(TimeLimit, form, workers=("a@mail",)) == TimeLimit(
        cluster="mail", workers=("a@mail",), task="pay", soft=None, hard=2.5
    )
    assert command_of(CancelConsumer, {"of_cluster": "mail", "queue": " spaced "}, workers=()).queue == " spaced "
    stamped = command_of(RevokeStamped, {"header": "batch", "stamps": "a b\nc", "terminate": "1", "signal": "SIGINT"})
    assert (stamped.stamps, stamped.terminate, stamped.signal) == (("a", "b", "c"), True, "SIGINT")
