"""Idempotency keys: their rows, the one execution under each, and how they are forgotten."""
