"""Every error that a person may see, as one tree.

Each class knows the HTTP status it becomes and a stable code; each message says what happened and what to do.
"""


class MonitorError(Exception):
    """The root. ``detail`` is JSON-able and goes into the API's error body."""

    status = 500
    code = "internal"

    def __init__(self, message: str, **detail: object) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidInput(MonitorError):
    """What was asked cannot be understood."""

    status = 400
    code = "invalid"


class SettingsError(InvalidInput):
    """A setting is unknown or has a value that cannot be used."""

    code = "settings"


class FilterError(InvalidInput):
    """A filter is wrong at ``column`` (counted from 1); never matches everything instead."""

    code = "filter"

    def __init__(self, message: str, column: int, known: tuple[str, ...] = ()) -> None:
        super().__init__(message, column=column, known=list(known))
        self.column = column
        self.known = known


class Unauthenticated(MonitorError):
    """Nobody is signed in."""

    status = 401
    code = "unauthenticated"


class Forbidden(MonitorError):
    """Somebody is signed in and may not do this."""

    status = 403
    code = "forbidden"


class NotFound(MonitorError):
    """There is no such thing in the record."""

    status = 404
    code = "not_found"


class MethodNotAllowed(MonitorError):
    """The path exists and does not take this method."""

    status = 405
    code = "method_not_allowed"


class TooLarge(MonitorError):
    """A request's body is longer than we read."""

    status = 413
    code = "too_large"


class UnsupportedType(MonitorError):
    """A request's body is of a type that this path does not take."""

    status = 415
    code = "unsupported_type"


class Conflict(MonitorError):
    """The thing exists and is not in a state in which this can be done."""

    status = 409
    code = "conflict"


class ArgumentsUnknown(Conflict):
    """The arguments of a task are not known well enough to send it again as they are."""

    code = "arguments_unknown"


class ConfirmationRequired(Conflict):
    """The arguments are probable, not exact: they must be seen and confirmed first."""

    code = "confirmation_required"


class NotTaken(Conflict):
    """The broker said no to a message: it is nowhere."""

    code = "not_taken"


class BrokerUnavailable(MonitorError):
    """The broker does not answer."""

    status = 503
    code = "broker_unavailable"


class TakenUnknown(BrokerUnavailable):
    """A message was on its way and the broker did not say that it has it: it may run, or not."""

    code = "taken_unknown"


class StoreUnavailable(MonitorError):
    """The database cannot be read or written."""

    status = 503
    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """The database answers and does not take these values: to wait will not help."""

    code = "store_refused"


class LeaseLost(MonitorError):
    """Another receiver writes this cluster's record: this one must not."""

    status = 503
    code = "lease_lost"


class Unsupported(MonitorError):
    """This transport, worker or version has no such ability."""

    status = 501
    code = "unsupported"
