"""Writes a schedule as a Django project does: its migrations, then its models. Takes the address of a database."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command

LAST = datetime(2026, 3, 2, 7, 30, 1, 250000, tzinfo=UTC)
ONCE = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)


def database(url: str) -> dict[str, object]:
    if url.startswith("sqlite"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(url.removeprefix("sqlite:///"))}
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.strip("/"),
        "HOST": parts.hostname,
        "PORT": parts.port,
        "USER": parts.username,
        "OPTIONS": {"options": parse_qs(parts.query)["options"][0]},
    }


def write() -> None:
    def model(name: str) -> object:
        return apps.get_model("django_celery_beat", name).objects

    task = model("PeriodicTask")
    every = model("IntervalSchedule").create(every=2, period="minutes")  # type: ignore[attr-defined]
    crontab = model("CrontabSchedule").create(  # type: ignore[attr-defined]
        minute="30", hour="7", day_of_week="mon", timezone="Asia/Tokyo"
    )
    once = model("ClockedSchedule").create(clocked_time=ONCE)  # type: ignore[attr-defined]
    solar = model("SolarSchedule").create(event="sunset", latitude=52.5, longitude=13.25)  # type: ignore[attr-defined]
    create = task.create  # type: ignore[attr-defined]
    create(name="count", task="shop.count", interval=every, args='["Ada", 7]', last_run_at=LAST, total_run_count=12)
    create(name="news", task="shop.news", crontab=crontab, kwargs='{"token": "abc"}', queue="mail")
    create(name="close", task="shop.close", clocked=once, one_off=True)
    create(name="dusk", task="shop.lights", solar=solar, enabled=False)


if __name__ == "__main__":
    settings.configure(
        INSTALLED_APPS=["django_celery_beat"],
        DATABASES={"default": database(sys.argv[1])},
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    call_command("migrate", verbosity=0)
    write()
