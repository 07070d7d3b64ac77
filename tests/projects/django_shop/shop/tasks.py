from pathlib import Path

from celery import shared_task


@shared_task(name="shop.pay")
def pay(ledger: str, order: str) -> dict[str, str]:
    """Fails the first time for each order, which the folder ``ledger`` remembers."""
    paid = Path(ledger, order)
    if not paid.exists():
        paid.touch()
        raise ValueError(f"the card of {order} was refused")
    return {"paid": order}
