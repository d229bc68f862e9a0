"""The share of the base in a saved model, and how a report tells of it."""

from dataclasses import dataclass, field
from typing import Any

from biencoder.retrieval.evaluate import DECIDING, Evaluation


@dataclass(frozen=True)
class Kept:
    """The share of the base in the saved model, and how it came about.

    Attributes:
        share: from 0 (none) to 1.
        tuned: the tuned weights alone, on the evaluation data.
        evaluation: the saved model on the same data.
        guards: evaluations of the saved model that were made on the way, by guard.
        why: what decided, in a sentence or two; empty if you named the share.
        tried: of each share that was tried, the deciding measure on the guard and on the evaluation data.
    """

    share: float
    tuned: Evaluation
    evaluation: Evaluation
    guards: dict[str, Evaluation] = field(default_factory=dict)
    why: str = ""
    tried: list[dict[str, float]] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What the saved weights are, for people; empty if they are the tuned ones and nothing was tried."""
        said = [self.why] if self.why else []
        if self.share:
            alone = self.tuned.metrics[DECIDING]
            said.append(
                f"Its weights are the average of the base ({self.share:g}) and the tuned model ({1 - self.share:g}), "
                f"which alone has {alone:.4f} {DECIDING}."
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """What ``eval.json`` holds of it."""
        found: dict[str, Any] = {"keep_base": self.share}
        if self.share:
            found["tuned_alone"] = self.tuned.to_json()
        if self.tried:
            found["keep_base_tried"] = self.tried
        return found
