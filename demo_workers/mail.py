"""First tasks: a function with a decorator, and ``.delay(...)`` to send it.

With an explicit name the module can be moved: workers still know the names in waiting messages.
"""

import random
import time

from demo_workers.app import app


@app.task(name="mail.receipt")
def receipt(order: int, address: str) -> str:
    """Sent with ``receipt.delay(1017, "ada@example.org")``."""
    time.sleep(random.uniform(0.05, 0.3))
    return f"receipt of order {order} sent to {address}"


@app.task(name="mail.welcome")
def welcome(name: str, *, language: str = "en") -> str:
    """Keyword arguments: ``welcome.delay("Ada", language="de")``."""
    time.sleep(random.uniform(0.05, 0.2))
    greeting = {"en": "Welcome", "de": "Willkommen", "pl": "Witaj"}[language]
    return f"{greeting}, {name}!"


# ignore_result: nobody reads the result, so it is not stored.
@app.task(name="mail.newsletter", ignore_result=True)
def newsletter(topic: str) -> None:
    """Sent by beat: see schedule.py."""
    time.sleep(random.uniform(0.2, 0.5))
