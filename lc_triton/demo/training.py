"""Training one network, epoch by epoch. All that is random in an epoch follows from the seed and its number, so that a
run that was interrupted after any epoch goes on to the same weights, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from lc_triton.demo import ranks
from lc_triton.demo.data import Digits
from lc_triton.demo.settings import Settings
from lc_triton.optim import FusedAdamW

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05


@dataclass
class History:
    """What happened, one entry an epoch: mean losses, share of test images that were right, seconds of training."""

    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Run:
    """A network on its way through training: weights, optimizer, schedule, history."""

    def __init__(
        self, make: Callable[[], nn.Sequential], settings: Settings, digits: Digits, mesh: DeviceMesh | None = None
    ) -> None:
        self.settings, self.digits = settings, digits
        self.device = settings.torch_device
        self.half = settings.torch_dtype in (torch.float16, torch.bfloat16)
        torch.manual_seed(settings.seed)
        self.network = make().to(self.device, torch.float32 if self.half else settings.torch_dtype)
        self.start = next(self.network.parameters()).detach().clone()
        if mesh is not None:
            ranks.share(self.network, mesh)
        self.steps = -(-len(digits.train_x) // settings.batch_size)
        optimizer: Any = FusedAdamW if settings.optimizer == "fused" else torch.optim.AdamW
        self.optimizer = optimizer(self.network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LEARNING_RATE, total_steps=settings.epochs * self.steps
        )
        # float16 gradients of a small loss would round to zero.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.torch_dtype == torch.float16)
        self.history = History()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history.train_loss)

    @property
    def parameters(self) -> int:
        """Numbers the network learns."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def seconds_per_step(self) -> float:
        """Median over the epochs of an epoch's mean, without the first, which warms up."""
        times = self.history.seconds[1:] or self.history.seconds
        return torch.tensor(times, dtype=torch.float64).median().item() / self.steps

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "network": ranks.whole(self.network.state_dict()),
            "optimizer": ranks.whole(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        parameters = dict(self.network.named_parameters())
        moments = ranks.parts_of(state["optimizer"]["state"], dict(enumerate(parameters.values())))
        self.network.load_state_dict(ranks.parts_of(state["network"], parameters))
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])

    def train(self, name: str, after_epoch: Callable[[], None]) -> None:
        """Train the epochs that are left, with a progress bar; `after_epoch` is called after each."""
        with tqdm(
            total=self.settings.epochs * self.steps,
            initial=self.epoch * self.steps,
            desc=f"{name:18}",
            unit="step",
            disable=None if ranks.first() else True,
        ) as bar:
            while self.epoch < self.settings.epochs:
                loss, seconds = self._train_epoch(bar)
                test_loss, accuracy = self._test()
                self.history.train_loss.append(loss)
                self.history.test_loss.append(test_loss)
                self.history.test_accuracy.append(accuracy)
                self.history.seconds.append(seconds)
                bar.set_postfix(loss=f"{loss:.3f}", test=f"{accuracy:.1%}")
                after_epoch()

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.torch_dtype if self.half else None
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.half)

    def _train_epoch(self, bar: Any) -> tuple[float, float]:
        torch.manual_seed(self.settings.seed * 100_003 + self.epoch + 1)
        order = torch.randperm(len(self.digits.train_x)).to(self.device)
        self.network.train()
        total = torch.zeros((), device=self.device)
        start = time.perf_counter()
        for batch in order.split(self.settings.batch_size):
            with self._autocast():
                loss = F.cross_entropy(self.network(self.digits.train_x[batch]), self.digits.train_y[batch])
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            total += loss.detach() * len(batch)
            bar.update()
        mean = total.item() / len(order)  # waits for the device
        return mean, time.perf_counter() - start

    @torch.no_grad()
    def _test(self) -> tuple[float, float]:
        self.network.eval()
        with self._autocast():
            scores = self.network(self.digits.test_x)
        right = (scores.argmax(1) == self.digits.test_y).double().mean().item()
        return F.cross_entropy(scores.float(), self.digits.test_y).item(), right
