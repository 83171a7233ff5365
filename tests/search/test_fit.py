"""Fits of the model's constants to synthetic times, which were computed with known constants."""

import math
import random
from dataclasses import replace

import pytest

from lc_triton import cli
from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentValueError
from lc_triton.search import fit, timings
from lc_triton.search.strategy import Outcome
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.task import Task
from tests.search.fakes import H200

TRUE = {
    "STEP_SECONDS": 0.4e-6,
    "PROGRAM_SECONDS": 5e-6,
    "MEMORY_LATENCY": 1.1e-6,
    "LAUNCH_SECONDS": 3e-6,
    "UNGROUPED_MMA_RATE": 0.45,
    "memory_rate": 3.6e12,
    "l2_rate": 7.0e12,
    "tensor_rate": 600e12,
}
# Layers bound by weights, arithmetic or L2, and layers that are thin, tiny or split.
LAYERS = [
    (Geometry.make((25, 25), 16, 16, 9), 32),
    (Geometry.make((25, 25), 16, 16, 9), 256),
    (Geometry.make((24, 24), 64, 64, 3), 64),
    (Geometry.make((24, 24), 64, 64, 3), 512),
    (Geometry.make((7, 7), 512, 256, 3), 64),
    (Geometry.make((6, 6), 64, 64, 3), 2048),
    (Geometry.make((64, 64), 3, 64, 5), 128),
    (Geometry.make((12, 12), 16, 16, 3), 32),
    (Geometry.make((28, 28), 128, 128, 3, groups=8), 32),
    (Geometry.make((12, 12), 32, 32, 3), 1),
]


def synthetic(noise=0.0, layers=LAYERS, tiles=24):
    """Times that the model predicts with the TRUE constants; with noise, also an outlier in each kernel."""
    r = random.Random(0)
    device = replace(H200, **{name: TRUE[name] for name in fit.RATES})
    found = []
    for geometry, batch in layers:
        for pass_name in PASSES:
            task = Task(pass_name, geometry, batch, "bfloat16", "bfloat16")
            configs = [config for _, config in model.ranked(task, H200)]
            configs = configs[:: max(1, len(configs) // tiles)]
            with fit.constants({name: TRUE[name] for name in fit.CONSTANTS}):
                times = {c: 1e6 * model.predict(task, device, c) * math.exp(r.gauss(0, noise)) for c in configs}
            if noise:
                times[configs[-1]] *= 5
            found.append(timings.Timing(H200.full_name, task, times))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "allowed"), [pytest.param(0.0, 0.01, marks=pytest.mark.nightly), (0.03, 0.12)])
def test_fit_finds_the_constants(noise, allowed):
    before = {name: getattr(model, name) for name in fit.CONSTANTS}
    found = fit.fit(synthetic(noise), H200)
    assert found.errors.keys() == TRUE.keys()
    for name, value in TRUE.items():
        assert found.after[name] == pytest.approx(value, rel=allowed), name
        assert abs(math.log(found.after[name] / value)) <= max(5 * found.errors[name], 0.005), name
    assert found.error_after < 0.1 * found.error_before if not noise else found.error_after < found.error_before
    assert {name: getattr(model, name) for name in fit.CONSTANTS} == before == {n: found.before[n] for n in before}


@pytest.mark.slow
def test_constants_without_influence_are_not_changed():
    """No tile of the layer is split, and all products fill the instruction of a warp group."""
    found = fit.fit(synthetic(layers=LAYERS[3:4], tiles=12), H200)
    assert "LAUNCH_SECONDS" not in found.errors
    assert found.after["LAUNCH_SECONDS"] == found.before["LAUNCH_SECONDS"]
    assert "no tile tells" in found.to_text()


def test_too_few_times():
    timings_ = [timings.Timing(H200.full_name, LAYERS[0], {})]
    with pytest.raises(ArgumentValueError, match="of more than 8 tiles"):
        fit.fit(timings_, H200)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    path = tmp_path / "times.jsonl"
    for timing in synthetic(layers=LAYERS[:1], tiles=8):
        outcome = Outcome({config: [us] for config, us in timing.medians.items()})
        timings.append(path, H200, timing.task, outcome)
    assert cli.main(["fit", str(path)]) == 0
    out = capsys.readouterr().out
    assert "of 3 kernels on NVIDIA H200\n" in out
    assert "memory_rate" in out
    assert cli.main(["fit", str(path), "--json"]) == 0
    assert '"device": "NVIDIA H200"' in capsys.readouterr().out
    path.write_text(path.read_text().replace("NVIDIA H200", "NVIDIA H300"))
    assert cli.main(["fit", str(path)]) == 2
    assert "--device must be given for times of 'NVIDIA H300'" in capsys.readouterr().err
    assert cli.main(["fit", str(path), "--device", "h200"]) == 0
    assert "on NVIDIA H300\n" in capsys.readouterr().out
    assert cli.main(["fit", str(tmp_path / "none.jsonl")]) == 2
