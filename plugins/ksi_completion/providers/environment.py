"""What a provider's process finds in its environment: what it needs, and no other provider's keys."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ksi_completion.providers.interface import ProviderFailure

ALWAYS: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What programs in general need; nothing that could be secret."""

NETWORK: Final = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
)
"""How the world is reached from this machine."""


def chosen(names: Iterable[str]) -> dict[str, str]:
    """Give those of the daemon's variables that are named, and set."""
    return {name: os.environ[name] for name in names if name in os.environ}


def key_of(env: str | None, file: Path | None) -> str | None:
    """Read a key from where the settings say; None where they say nothing. Raises ProviderFailure."""
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise _no_key(f"cannot read {file}: {reason}") from None
        if not text:
            raise _no_key(f"{file} is empty")
        return text
    if env is not None:
        if not (key := os.environ.get(env)):
            raise _no_key(f"{env} is not set in the daemon's environment")
        return key
    return None


def _no_key(why: str) -> ProviderFailure:
    return ProviderFailure(f"there is no key: {why}", reason="no_key", kind="auth")
