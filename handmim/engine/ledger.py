"""What a run left out: steps without an update, samples that could not be read."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Kept in every checkpoint, so that a run that goes on leaves out the same."""

    skipped: list[int] = field(default_factory=list)  # steps
    replaced: int = 0  # draws of samples that could not be read
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by name of the sample

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.skipped = list(state["skipped"])
        self.replaced, self.unreadable = state["replaced"], dict(state["unreadable"])

    def scalars(self) -> dict[str, float]:
        """Counts worth logging: those that are not 0."""
        counts = {"data/replaced": self.replaced, "data/skipped_steps": len(self.skipped)}
        return {name: float(count) for name, count in counts.items() if count}
