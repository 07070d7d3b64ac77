"""The schedule of beat: intervals and crontabs.

Only one beat may run, else every task is sent twice.
"""

from celery.schedules import crontab

SCHEDULE = {
    "check stock every 10 seconds": {
        "task": "warehouse.check_stock",
        "schedule": 10.0,
        # Beat also sends while no worker runs; a late check is useless.
        "options": {"expires": 10.0},
    },
    "remind of forgotten baskets every 45 seconds": {
        "task": "reminders.forgotten_baskets",
        "schedule": 45.0,
    },
    "daily report, here every second minute": {
        "task": "workflows.daily_report",
        "schedule": crontab(minute="*/2"),
        "args": ("all shops",),
    },
    "newsletter on Mondays at 7:30": {
        "task": "mail.newsletter",
        "schedule": crontab(hour=7, minute=30, day_of_week="monday"),
        "kwargs": {"topic": "news of the week"},
    },
}
