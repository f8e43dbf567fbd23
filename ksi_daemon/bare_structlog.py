"""structlog without rich, which it loads where it is installed: 4 MB that are of no use to a daemon."""

import sys

if "rich" in sys.modules:
    import structlog
else:
    sys.modules["rich"] = None  # type: ignore[assignment]  # as absent, for the time of one import
    try:
        import structlog
    finally:
        del sys.modules["rich"]

__all__ = ["structlog"]
