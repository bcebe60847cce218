"""What the losses that compare states of the two models share."""

from enum import StrEnum

from pydantic import Field

from .base import LossConfig


class Distance(StrEnum):
    """How two states are compared."""

    MSE = "MSE"
    COSINE = "Cosine"

    @property
    def words(self) -> str:
        """As a phrase before `of`."""
        return "mean squared error" if self is Distance.MSE else "cosine distance"


class StatesLoss(LossConfig):
    """Compares states, [hidden size] for each token. If the widths differ, a learnt matrix brings the student's to the
    teacher's.
    """

    distance: Distance = Field(
        default=Distance.COSINE,
        description="How the states are compared. If the student is narrower than the teacher, a projection is trained "
        "with it, and is not exported.",
    )
