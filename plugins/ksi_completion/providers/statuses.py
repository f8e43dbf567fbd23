"""What an HTTP status of a model's service means for another try."""

from typing import Final

from ksi_completion.providers.interface import FailureClass

_NAMED: Final[dict[int, tuple[FailureClass, str]]] = {
    401: ("auth", "unauthenticated"),
    402: ("auth", "billing"),
    403: ("auth", "forbidden"),
    404: ("invalid", "no_model"),
    408: ("transient", "timed_out"),
    409: ("transient", "conflict"),
    413: ("invalid", "too_large"),
    429: ("rate_limited", "rate_limited"),
    504: ("transient", "timed_out"),
    529: ("transient", "overloaded"),
}


def classified(status: int) -> tuple[FailureClass, str]:
    """Give the class and the reason of a failure."""
    if status in _NAMED:
        return _NAMED[status]
    return ("transient", "server_error") if status >= 500 else ("invalid", "refused")
