"""The errors of KSI, and the codes they have on the wire.

    KSIError
    ├── InternalError            INTERNAL             a bug; the caller learns only that
    └── OperationalError                              expected: the request or the world is not right
        ├── InvalidArgument      INVALID_ARGUMENT
        ├── NotFound             NOT_FOUND
        ├── AlreadyExists        ALREADY_EXISTS
        ├── FailedPrecondition   FAILED_PRECONDITION
        ├── PermissionDenied     PERMISSION_DENIED
        ├── ResourceExhausted    RESOURCE_EXHAUSTED   retryable
        ├── Unavailable          UNAVAILABLE          retryable
        ├── DeadlineExceeded     DEADLINE_EXCEEDED    retryable
        ├── Cancelled            CANCELLED
        ├── Unimplemented        UNIMPLEMENTED
        └── DataLoss             DATA_LOSS

The codes are those of gRPC, less the four that KSI has no use for.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class KSIError(Exception):
    """Say what went wrong, in a form that crosses the wire unchanged.

    ``message``: lower-case, no full stop, names the thing and the limit. ``hint``: what to do.
    ``details``: keywords, JSON values; ``reason`` is the machine's word for the case.
    """

    code: ClassVar[str] = "INTERNAL"
    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self, message: str = "", *, hint: str | None = None, retryable: bool | None = None, **details: Any
    ) -> None:
        super().__init__(message or type(self).__doc__ or self.code)
        self.hint = hint
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.details: dict[str, Any] = details

    @property
    def message(self) -> str:
        """What went wrong."""
        return str(self.args[0])

    def to_wire(self) -> dict[str, Any]:
        """Give the ``error`` object of an error frame."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message, "details": self.details}
        wire["retryable"] = self.retryable
        if self.hint is not None:
            wire["hint"] = self.hint
        return wire


class InternalError(KSIError):
    """A bug in KSI or in a plugin."""


class OperationalError(KSIError):
    """An expected failure: answered as it is, with no traceback."""

    code = "UNAVAILABLE"


class InvalidArgument(OperationalError):
    """The request is malformed."""

    code = "INVALID_ARGUMENT"


class NotFound(OperationalError):
    """The thing asked for does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(OperationalError):
    """The thing to be made exists."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(OperationalError):
    """The system is not in the state that the request needs."""

    code = "FAILED_PRECONDITION"


class PermissionDenied(OperationalError):
    """The actor may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(OperationalError):
    """A limit is reached; ``retry_after_s`` (seconds) says when to come back."""

    code = "RESOURCE_EXHAUSTED"
    retryable_by_default = True


class Unavailable(OperationalError):
    """A part that is needed does not answer at present."""

    code = "UNAVAILABLE"
    retryable_by_default = True


class DeadlineExceeded(OperationalError):
    """The time given has passed; the work may or may not have been done."""

    code = "DEADLINE_EXCEEDED"
    retryable_by_default = True


class Cancelled(OperationalError):
    """The caller, or a shutdown, stopped the work."""

    code = "CANCELLED"


class Unimplemented(OperationalError):
    """Nothing here can do that."""

    code = "UNIMPLEMENTED"


class DataLoss(OperationalError):
    """Stored bytes are missing or damaged."""

    code = "DATA_LOSS"


ERRORS: Mapping[str, type[KSIError]] = {
    error.code: error
    for error in (
        InternalError,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unimplemented,
        DataLoss,
    )
}


def error_from_wire(wire: Mapping[str, Any]) -> KSIError:
    """Make the exception of an error frame's ``error`` object; unknown codes become InternalError."""
    # It may be a client's, which is believed in nothing.
    kind = ERRORS.get(str(wire.get("code")), InternalError)
    error = kind(str(wire.get("message", "")), hint=wire.get("hint"), retryable=bool(wire.get("retryable")))
    details = wire.get("details")
    error.details = dict(details) if isinstance(details, Mapping) else {}
    return error
