"""What `model.add_loss` and `model.add_metric` leave in a model's graph: layers that nothing else takes from."""

from __future__ import annotations

from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Place
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.training import Trained


class AddedLoss(Trained):
    """A loss that the model's code computes from its tensors: `regularization_loss` has it."""

    def slots(self) -> list[Slot]:
        """See the base."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        """The loss x, which is kept until it is asked for."""
        self._activity = x.sum()
        return x


class AddLossArguments(Arguments):
    """`AddLoss`; an unconditional loss is one that no input changes."""

    unconditional: object = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return AddedLoss()


class AddMetricArguments(Arguments):
    """`AddMetric`, whose number nothing here reads."""

    aggregation: object = None
    metric_name: object = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.Identity()


CLASSES: dict[str, type[Arguments]] = {"AddLoss": AddLossArguments, "AddMetric": AddMetricArguments}
