"""A broker with a key prefix and a default queue of its own, results and schedule in Django's database."""

import os
from pathlib import Path

SECRET_KEY = "of-a-test"
INSTALLED_APPS = ["django_celery_results", "django_celery_beat", "shop"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["SHOP_DIRECTORY"], "shop.sqlite3"),
        "OPTIONS": {"timeout": 20},
    }
}
USE_TZ = True
TIME_ZONE = "Asia/Tokyo"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
CELERY_BROKER_TRANSPORT_OPTIONS = {"global_keyprefix": "shop-", "visibility_timeout": 7200}
CELERY_TASK_DEFAULT_QUEUE = "shop-orders"
CELERY_TASK_SEND_SENT_EVENT = True
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
