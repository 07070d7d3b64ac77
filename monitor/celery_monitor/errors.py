"""Every error that a person may see, as one tree.

Each class has an HTTP status and a stable code; each message says what happened and what to do.
"""

INTERNAL_ERROR = "Internal error; see the log of the dashboard."


class MonitorError(Exception):
    """The root. ``detail`` is JSON-able and goes into the API's error body."""

    status = 500
    code = "internal"

    def __init__(self, message: str, **detail: object) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidInput(MonitorError):
    """The request is not valid."""

    status = 400
    code = "invalid"


class SettingsError(InvalidInput):
    """A setting is unknown or has an invalid value."""

    code = "settings"


class FilterError(InvalidInput):
    """A filter is invalid at ``column`` (counted from 1). An invalid filter never matches everything."""

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
    """The user may not do this."""

    status = 403
    code = "forbidden"


class NotFound(MonitorError):
    """Not in the record."""

    status = 404
    code = "not_found"


class MethodNotAllowed(MonitorError):
    """The path does not support this method."""

    status = 405
    code = "method_not_allowed"


class TooLarge(MonitorError):
    """The request's body is longer than the limit."""

    status = 413
    code = "too_large"


class TooManyRequests(MonitorError):
    """This client must wait for ``retry_after`` seconds."""

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, retry_after=retry_after)
        self.retry_after = retry_after


class UnsupportedType(MonitorError):
    """The request's body has an unsupported content type."""

    status = 415
    code = "unsupported_type"


class Conflict(MonitorError):
    """The current state does not allow this."""

    status = 409
    code = "conflict"


class ArgumentsUnknown(Conflict):
    """The arguments of a task are not known well enough to retry it unchanged."""

    code = "arguments_unknown"


class ConfirmationRequired(Conflict):
    """The arguments are probable, not exact: a person must confirm them first."""

    code = "confirmation_required"


class NotTaken(Conflict):
    """The broker rejected a message: it is in no queue."""

    code = "not_taken"


class BrokerUnavailable(MonitorError):
    """The broker does not answer."""

    status = 503
    code = "broker_unavailable"


class NotAlive(MonitorError):
    """A worker sends no heartbeats any more."""

    status = 503
    code = "not_alive"


class TakenUnknown(BrokerUnavailable):
    """The broker did not confirm a message: its task may run, or not."""

    code = "taken_unknown"


class StoreUnavailable(MonitorError):
    """The database cannot be read or written."""

    status = 503
    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """The database rejects these values: waiting does not help."""

    code = "store_refused"


class LeaseLost(MonitorError):
    """Another receiver writes this cluster's record, so this one must not."""

    status = 503
    code = "lease_lost"


class Unsupported(MonitorError):
    """This transport, worker or version does not support it."""

    status = 501
    code = "unsupported"
