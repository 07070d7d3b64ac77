from celery_monitor.web.wording import TracebackPart, parts

TEXT = """Traceback (most recent call last):
  File "/venv/lib/python3.12/site-packages/celery/app/trace.py", line 453, in trace_task
    R = fun(*args)
  File "/venv/lib/python3.12/site-packages/celery/app/trace.py", line 736, in __protected_call__
    return self.run(*args)
  File "/srv/shop/pay.py", line 7, in charge
    gateway.send(order)
    ~~~~~~~~~~~~^^^^^^^
  File "/srv/shop/gateway.py", line 9, in send
    raise Declined
shop.errors.Declined: card
 second line of the message
"""


def test_library_frames_fold_together_and_each_of_the_applications_stands_alone() -> None:
    found = parts(TEXT)
    assert [(part.kind, part.frames) for part in found] == [
        ("text", 0),
        ("library", 2),
        ("frame", 1),
        ("frame", 1),
        ("text", 0),
    ]
    assert found[2].text.endswith("~~~~~~~~~~~~^^^^^^^")
    assert found[4].text == "shop.errors.Declined: card\n second line of the message"


def test_nothing_is_lost() -> None:
    assert "\n".join(part.text for part in parts(TEXT)) == TEXT.rstrip("\n")


def test_text_that_is_no_traceback_stays_text() -> None:
    assert parts("broken <b>") == [TracebackPart("text", "broken <b>")]
