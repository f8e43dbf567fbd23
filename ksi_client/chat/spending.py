"""What models were paid, in words."""

from collections.abc import Mapping
from typing import Any

from ksi_client.chat.showing import dollars


def spent(usage: Mapping[str, Any]) -> str:
    """Say what calls have used."""
    calls, prompt, completion = usage["calls"], usage["prompt_tokens"], usage["completion_tokens"]
    parts = [
        f"{calls:,} call{'s' * (calls != 1)}",
        f"{prompt + completion:,} tokens ({prompt:,} in, {completion:,} out)",
    ]
    if usage["cached_tokens"]:
        parts.append(f"{usage['cached_tokens']:,} of them cached")
    if usage["cost_usd"] is not None:
        parts.append(dollars(usage["cost_usd"]))
    return ", ".join(parts)


def left(budget: Mapping[str, Any]) -> str:
    """Say how much of a budget is used."""
    parts = []
    if budget["tokens"] is not None:
        parts.append(f"{budget['used_tokens']:,} of {budget['tokens']:,} tokens")
    if budget["cost_usd"] is not None:
        parts.append(f"{dollars(budget['used_cost_usd'])} of {dollars(budget['cost_usd'])}")
    return ", ".join(parts) + (", used up" if budget["is_exceeded"] else "")
