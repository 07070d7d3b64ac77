"""As Django projects have it: the settings module, and a namespace."""

import os
import threading
from pathlib import Path

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
held = Path(os.environ["SHOP_DIRECTORY"], "imported").open("a")  # whoever has it open has imported this
print("the shop says hello when it is imported")
threading.Thread(target=threading.Event().wait, daemon=True).start()

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
