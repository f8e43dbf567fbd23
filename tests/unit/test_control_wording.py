"""Figures as people write them."""

import pytest

from ksi_client.control.wording import duration, models, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.57, "0.6 s"),
        (12.9, "12 s"),
        (59, "59 s"),
        (61, "1 m 1 s"),
        (200, "3 m 20 s"),
        (8040, "2 h 14 m"),
        (86400, "1 d 0 h"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(12, "12 bytes"), (180_000_000, "180 MB"), (52_300_000_000, "52 GB"), (2_500_000_000_000, "2.5 TB")],
)
def test_a_size_has_at_most_three_digits(amount: int, text: str) -> None:
    assert size(amount) == text


def test_a_model_that_is_left_alone_is_no_provider_that_is_not_set_up() -> None:
    detail = {
        "configured": 2,
        "usable": ["embedded"],
        "litellm": "litellm is not installed",
        "left_alone": ["litellm/gpt"],
    }
    assert models({"checks": {"providers": {"detail": detail}}}) == (
        "embedded (no key needed); left alone for a while: litellm/gpt; "
        "not set up: litellm (docs/providers.md)"
    )
