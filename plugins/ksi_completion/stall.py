"""How long a provider may be silent."""

from ksi_common.records import record


@record
class Stall:
    """Limits in seconds: ``first_s`` until something of an answer comes, ``idle_s`` from then on."""

    first_s: float
    idle_s: float

    def silent_s(self, *, is_first: bool) -> float:
        """Give the limit that holds now."""
        return self.first_s if is_first else self.idle_s
