"""The demonstration from start to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from lc_triton._version import __version__
from lc_triton.core import backend
from lc_triton.core.files import write_atomically
from lc_triton.demo import checkpoint, ranks, report
from lc_triton.demo.data import Digits
from lc_triton.demo.networks import NETWORKS
from lc_triton.demo.settings import Settings
from lc_triton.demo.training import Run
from lc_triton.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def run(settings: Settings) -> dict[str, Any]:
    """Train the three networks, print a table, and write checkpoint.pt, results.json and demo.png into `settings.out`.

    Args:
        settings: see `Settings`.

    Returns:
        What results.json holds: the settings, device, versions, and for each network its accuracy, number of
        parameters, seconds a step and history.

    Raises:
        LocalConvError: scikit-learn or matplotlib is not installed, or a checkpoint that cannot be used.

    Example:
        >>> from lc_triton.demo import Settings, run
        >>> results = run(Settings(epochs=1, out="/tmp/lc-triton-demo"))  # doctest: +SKIP
    """
    report.check_matplotlib()
    device = settings.torch_device
    with ranks.joined(device) as mesh:
        return _run(settings, device, mesh)


def _run(settings: Settings, device: torch.device, mesh: DeviceMesh | None) -> dict[str, Any]:
    digits = Digits.load(device, torch.float64 if settings.dtype == "float64" else torch.float32)
    runs = {name: Run(make, settings, digits, mesh) for name, make in NETWORKS.items()}
    path = settings.out / "checkpoint.pt"
    if settings.resume:
        _resume(path, settings, runs)
    elif path.exists():
        print(f"{path} is of an earlier run and will be replaced (--resume goes on with an interrupted one)")

    where = report.device_name(device)
    implementation = "Triton kernels" if backend.resolve(device.type) == "triton" else "pure torch"
    print(f"1,797 handwritten digits of 8 x 8 pixels; {len(digits.test_x)} are held out. Training on {where},")
    print(f"{settings.dtype}, the locally connected layers by {implementation}.")
    if mesh is not None:
        print(f"{mesh.size()} processes share these layers by their positions.")

    def save() -> None:
        states = {name: r.state_dict() for name, r in runs.items()}
        ranks.by_the_first(lambda: checkpoint.save(path, settings.fingerprint, states))

    # cuDNN's fastest convolutions add in no fixed order; a resumed run must end with the same weights.
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        for name, training in runs.items():
            training.train(name, save)

    results = {
        "settings": settings.fingerprint,
        "device": where,
        "versions": {"lc_triton": __version__, "torch": torch.__version__},
        "networks": {
            name: {
                "test_accuracy": r.history.test_accuracy[-1],
                "parameters": r.parameters,
                "seconds_per_step": r.seconds_per_step,
                "path": implementation if name == "locally connected" else "torch",
                "history": vars(r.history),
            }
            for name, r in runs.items()
        },
    }
    print(f"\n{report.table(results)}\n")
    shown = runs["locally connected"]
    filters = ranks.whole(shown.network.get_parameter("0.weight"))

    def write() -> None:
        write_atomically(settings.out / "results.json", json.dumps(results, indent=1).encode())
        report.picture(settings.out / "demo.png", results, shown.start, filters, digits)

    ranks.by_the_first(write)
    print(f"{settings.out / 'demo.png'} shows the loss curves and the learned filters;")
    print(f"{settings.out / 'results.json'} has all numbers.")
    return results


def _resume(path: Any, settings: Settings, runs: dict[str, Run]) -> None:
    if not path.exists():
        print(f"{path} does not exist yet: starting from the beginning")
        return
    states = checkpoint.load(path, settings.fingerprint)
    try:
        for name, training in runs.items():
            training.load_state_dict(states[name])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"its contents do not fit ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        raise CheckpointError(path=path, reason=reason) from error
    done = ", ".join(f"{name} {r.epoch}/{settings.epochs}" for name, r in runs.items())
    print(f"going on from {path} (epochs done: {done})")
