"""A class of the user's that no JSON carries."""


class Order:
    """Its repr says what it is, not how to make it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<Order {self.number}>"
