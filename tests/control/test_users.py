"""Commands on users and API tokens, as the page and the command line give them."""

from collections.abc import Iterator

import pytest

from celery_monitor.control.perform import Controller
from celery_monitor.control.users import (
    AddUser,
    ChangeRole,
    ChangeScope,
    DisableUser,
    MakeToken,
    RemoveUser,
    ResetPassword,
)
from celery_monitor.errors import Conflict, Forbidden, InvalidInput, MonitorError, NotFound
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.users import find_user, read_tokens, read_users
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store, open_store

ROOT = Actor("root", Role.ADMIN)
PASSWORD = "l0ng enough"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An empty record, on SQLite and on PostgreSQL."""
    opened = open_store(database_url)
    yield opened
    opened.close()


@pytest.fixture
def controller(store: Store) -> Controller:
    return Controller(store, Settings())


def add(controller: Controller, name: str, role_name: str = "viewer") -> None:
    controller.perform(ROOT, AddUser(name=name, role_name=role_name, password=PASSWORD))  # type: ignore[arg-type]


def test_first_user_is_admin_and_the_next_what_is_said(controller: Controller, store: Store) -> None:
    add(controller, "ada")
    add(controller, "ned")
    add(controller, "olga", "operator")
    roles = {user.name: user.role for user in read_users(store)}
    assert roles == {"ada": Role.ADMIN, "ned": Role.VIEWER, "olga": Role.OPERATOR}


def test_where_the_setting_names_users_the_first_stored_one_is_nothing_special(store: Store) -> None:
    controller = Controller(store, Settings(basic_auth=("root:admin:toor",)))
    add(controller, "ned")
    assert [user.role for user in read_users(store)] == [Role.VIEWER]
    with pytest.raises(Conflict, match="basic_auth"):
        add(controller, "root")


def test_password_is_stored_as_a_hash_and_stands_in_no_record(controller: Controller, store: Store) -> None:
    add(controller, "ada")
    controller.perform(ROOT, ResetPassword(name="ada", password="an0ther one"))
    user = find_user(store, "ada")
    assert user is not None
    assert (user.password or "").startswith("$argon2id$")
    assert not [each for each in read_actions(store).items if PASSWORD in str(each) or "an0ther" in str(each)]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "a\x1bb", "x" * 201])
def test_name_that_nobody_could_sign_in_with_is_refused(controller: Controller, store: Store, name: str) -> None:
    with pytest.raises(InvalidInput):
        add(controller, name)
    assert read_users(store) == []


@pytest.mark.parametrize("password", ["", "seven77", "x" * 1025])
def test_password_of_a_wrong_length_is_refused(controller: Controller, store: Store, password: str) -> None:
    with pytest.raises(InvalidInput, match="8 to 1024"):
        controller.perform(ROOT, AddUser(name="ada", password=password))
    assert read_users(store) == []


def test_user_is_added_once(controller: Controller) -> None:
    add(controller, "ada")
    with pytest.raises(Conflict, match="already"):
        add(controller, "ada")


def test_last_admin_stays(controller: Controller, store: Store) -> None:
    add(controller, "ada")
    add(controller, "ned")
    for command in (ChangeRole(name="ada", role_name="viewer"), DisableUser(name="ada"), RemoveUser(name="ada")):
        with pytest.raises(Conflict, match="only admin"):
            controller.perform(ROOT, command)
    controller.perform(ROOT, ChangeRole(name="ned", role_name="admin"))
    controller.perform(ROOT, RemoveUser(name="ada"))
    assert [user.name for user in read_users(store)] == ["ned"]


def test_scope_is_stored_as_it_is_read_and_never_of_the_last_admin(controller: Controller, store: Store) -> None:
    controller.perform(ROOT, AddUser(name="ada", scope="queue:emails"))
    made = controller.perform(ROOT, AddUser(name="sam", role_name="operator", scope="queue:emails,mail-*"))
    assert made.message == "Added sam as operator of (queue:emails OR queue:mail-*)."
    controller.perform(ROOT, MakeToken(name="ci", scope="cluster:eu"))
    scopes = {user.name: user.scope for user in read_users(store)}
    assert scopes == {"ada": "", "sam": "(queue:emails OR queue:mail-*)"}  # the first user is admin of everything
    assert [token.scope for token in read_tokens(store)] == ["cluster:eu"]
    controller.perform(ROOT, ChangeRole(name="sam", role_name="admin"))
    with pytest.raises(Conflict, match="only admin"):
        controller.perform(ROOT, ChangeScope(name="ada", scope="cluster:eu"))
    with pytest.raises(InvalidInput, match="scope"):
        controller.perform(ROOT, ChangeScope(name="sam", scope="state:failed"))
    controller.perform(ROOT, ChangeScope(name="sam", scope=""))
    controller.perform(ROOT, ChangeScope(name="ada", scope="cluster:eu"))
    assert {user.name: user.scope for user in read_users(store)} == {"ada": "cluster:eu", "sam": ""}


def test_admin_with_a_scope_manages_no_users(controller: Controller, store: Store) -> None:
    with pytest.raises(Forbidden, match="cluster:eu"):
        controller.perform(Actor("ada", Role.ADMIN, "cluster:eu"), AddUser(name="ned", password=PASSWORD))
    assert read_users(store) == []


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_only_admins_manage_users(controller: Controller, store: Store, role: Role) -> None:
    with pytest.raises(Forbidden):
        controller.perform(Actor("vera", role), AddUser(name="ned", password=PASSWORD))
    assert read_users(store) == []


def test_unknown_user_is_said(controller: Controller) -> None:
    add(controller, "ada")
    with pytest.raises(NotFound, match="'ned'"):
        controller.perform(ROOT, ResetPassword(name="ned", password=PASSWORD))


def test_token_has_a_name_of_its_own_and_a_bounded_life(controller: Controller) -> None:
    made = controller.perform(ROOT, MakeToken(name="ci", role_name="operator", days=30))
    assert made.secret is not None
    assert made.secret.startswith("cmt_")
    assert made.secret not in repr(made)
    for wrong in (MakeToken(name="ci"), MakeToken(name="x", days=0), MakeToken(name="y", days=4000)):
        with pytest.raises(MonitorError):
            controller.perform(ROOT, wrong)
