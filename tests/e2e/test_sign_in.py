"""People sign in and out in a browser: by password, and at an identity provider's own page."""

import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from celery_monitor.control.users import perform_locally
from celery_monitor.settings import Settings
from tests.e2e.conftest import Faults
from tests.e2e.product import serving
from tests.test_cli import environ
from tests.web.test_oidc import provider


def add_user(database: Path, name: str, password: str) -> None:
    command = [sys.executable, "-m", "celery_monitor", "users", "add", name, "--password-stdin"]
    command += ["--database", f"sqlite:///{database}"]
    subprocess.run(command, input=f"{password}\n", text=True, check=True, env=environ(), capture_output=True)


def sign_in(page: Page, name: str, password: str) -> None:
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_password_user_signs_in_manages_users_and_signs_out(
    page: Page, faults: Faults, redis_url: str, tmp_path: Path
) -> None:
    add_user(tmp_path / "record.db", "ada", "l0ng enough")
    faults.expect("401")
    with serving(redis_url, tmp_path) as product:
        base = product.address.rstrip("/")
        page.goto(f"{base}/tasks?q=state%3Afailed")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        sign_in(page, "ada", "not that one")
        expect(page.get_by_role("alert")).to_contain_text("is wrong")
        sign_in(page, "ada", "l0ng enough")
        expect(page).to_have_url(f"{base}/tasks?q=state%3Afailed")
        expect(page.locator("#live")).to_have_attribute("data-live", "live")
        page.get_by_role("link", name="ada").click()
        page.get_by_role("link", name="Users").click()
        page.get_by_role("textbox", name="User name").fill("ned")
        page.get_by_label("Password", exact=True).fill("an0ther one")
        page.get_by_role("button", name="Add user").click()
        expect(page.get_by_text("Added ned as viewer.")).to_be_visible()
        page.get_by_label("Token name").fill("ci")
        page.get_by_role("button", name="Create token").click()
        expect(page.get_by_text(re.compile(r"cmt_[\w-]{40,}"))).to_be_visible()
        page.goto(f"{base}/account")
        page.get_by_role("button", name="Sign out", exact=True).click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.goto(f"{base}/tasks")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_open_page_goes_to_the_sign_in_page_when_its_session_ends(
    page: Page, faults: Faults, redis_url: str, tmp_path: Path
) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/record.db")
    for name in ("ada", "bob"):
        perform_locally(settings, "user.add", name=name, password="l0ng enough", role_name="viewer")
    with serving(redis_url, tmp_path) as product:
        page.goto(f"{product.address}tasks?q=state%3Afailed")
        sign_in(page, "bob", "l0ng enough")
        expect(page.locator("#live")).to_have_attribute("data-live", "live")
        perform_locally(settings, "user.disable", name="bob")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        expect(page).to_have_url(re.compile(r"/sign-in\?next=%2Ftasks%3Fq%3Dstate%253Afailed$"))


def test_user_of_an_identity_provider_signs_in(page: Page, faults: Faults, redis_url: str, tmp_path: Path) -> None:
    faults.expect("ERR_NAME_NOT_RESOLVED|404")  # of the provider's own page
    with provider(sub="u-31", email="ada@example.com", email_verified=True) as issuer:
        options = ("--oidc-issuer", issuer, "--oidc-client-id", "monitor-7", "--oidc-client-secret", "s3cret")
        with serving(redis_url, tmp_path, *options, "--oidc-admins", "ada@example.com") as product:
            base = product.address.rstrip("/")
            page.goto(f"{base}/workers")
            page.get_by_role("link", name="Sign in with single sign-on").click()
            page.locator("input[name=sub]").fill("u-31")
            page.locator("button[type=submit], button").first.click()
            expect(page).to_have_url(f"{base}/workers")
            page.get_by_role("link", name="ada@example.com").click()
            expect(page.get_by_text("Role: admin")).to_be_visible()
