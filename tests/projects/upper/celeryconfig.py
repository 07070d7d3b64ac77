import os
from datetime import timedelta

BROKER_URL = os.environ["SHOP_BROKER"]
BROKER_TRANSPORT_OPTIONS = {"global_keyprefix": "upper-"}
CELERY_DEFAULT_QUEUE = "upper-orders"
CELERY_SEND_TASK_SENT_EVENT = True
CELERY_RESULT_BACKEND = os.environ["SHOP_BROKER"]
CELERYBEAT_SCHEDULE = {
    "count": {"task": "shop.pay", "schedule": timedelta(minutes=45), "args": ("/nowhere", "17")},
    "broken": {"task": "shop.pay", "schedule": timedelta(minutes=45), "args": 1},
}
