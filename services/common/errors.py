"""Errors that a caller may see; plain Python, no transport.

    ServiceError
    ├── InvalidInput        the request itself is wrong; the caller must change it
    ├── NotFound            the named thing does not exist
    ├── NotReady            not now, but soon: a model loads, a backend restarts
    ├── Overloaded          a queue or quota is full
    ├── Conflict            the state of things forbids it; look before trying again
    ├── Unsupported         this server does not do that
    ├── Unauthenticated     nobody knows who asks
    ├── NotAllowed          who asks may not
    └── DeadlineExceeded    the caller's time is over

`services.common.statuses` maps each to its gRPC status; `gateway.failures` maps the status to HTTP.
"""

from collections.abc import Mapping

REFUSED_BY_GRAPH = "REFUSED_BY_GRAPH"
"""Reason of the error about inputs that a graph fails on: the request came as far as that."""


class ServiceError(Exception):
    """An expected failure with a sentence for the caller.

    Args:
        message: One sentence that names the value, the limit and what to change.
        reason: A stable UPPER_SNAKE_CASE word that a program can branch on.
        field: The request field at fault, where there is one.
        details: Further machine-readable facts, sent as `google.rpc.ErrorInfo.metadata`.
        retry_after_seconds: When trying again may succeed, where that is known.
    """

    reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        details: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.field = field
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidInput(ServiceError):
    """The request is wrong and stays wrong until the caller changes it."""

    reason = "INVALID_INPUT"


class NotFound(ServiceError):
    """The named model, version, run or file does not exist."""

    reason = "NOT_FOUND"


class NotReady(ServiceError):
    """The service cannot answer yet; trying again later may succeed."""

    reason = "NOT_READY"


class Overloaded(ServiceError):
    """A queue, a quota or the memory bound is full; slow down."""

    reason = "OVERLOADED"


class Conflict(ServiceError):
    """The present state forbids the request: a stale generation, another spec's digest."""

    reason = "CONFLICT"


class Unsupported(ServiceError):
    """The request asks for something this server does not do."""

    reason = "UNSUPPORTED"


class Unauthenticated(ServiceError):
    """A key is needed, or the one that was sent is not valid."""

    reason = "UNAUTHENTICATED"


class NotAllowed(ServiceError):
    """The caller is known, and may not do that."""

    reason = "NOT_ALLOWED"


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before the work was done."""

    reason = "DEADLINE_EXCEEDED"


class SettingsError(Exception):
    """A process cannot start as it was told to; the text lists every problem. Seen by operators, never by callers."""
