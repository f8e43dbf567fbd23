"""``completion:*`` and ``conversation:*``: ask a model, durably."""
