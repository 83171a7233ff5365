"""Initializers by Keras's names: their distributions, seeds and fans."""

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.keras import initializers
from tests.cases import assert_close


@pytest.mark.parametrize("name", sorted({n for n in initializers.INITIALIZERS if n.islower()}))
def test_initializers(name):
    config = {"value": 0.5} if name == "constant" else {}
    shape = (50, 24, 24) if name == "identity" else (50, 24, 36)
    known = vars(initializers.get(name))
    if "seed" in known:
        config["seed"] = 3
    init = initializers.get({"class_name": name, "config": config})
    w = init(shape, torch.float64)
    assert w.shape == shape
    if "seed" in known:
        assert torch.equal(w, init(shape, torch.float64))
        assert not torch.equal(w, initializers.get(name)(shape, torch.float64))
    fan_in, fan_out = shape[1:]
    std = {
        "constant": 0,
        "glorot": (2 / (fan_in + fan_out)) ** 0.5,
        "he": (2 / fan_in) ** 0.5,
        "lecun": fan_in**-0.5,
        "variance": fan_in**-0.5,
        "random": {"random_uniform": 0.1 / 12**0.5}.get(name, 0.05),
        "uniform": 0.1 / 12**0.5,
        "normal": 0.05,
        "truncated": 0.05 * initializers.TRUNCATED_STD,
        "orthogonal": fan_out**-0.5,
        "identity": (1 / fan_in - 1 / fan_in**2) ** 0.5,
    }.get(name.split("_")[0], 0)
    assert abs(w.std() - std) <= 0.02 * std
    if name == "orthogonal":
        assert_close(w @ w.mT, torch.eye(24, dtype=torch.float64).expand(50, 24, 24), 1e-12)
        assert not torch.equal(w[0], w[1])
    if name in ("truncated_normal", "glorot_normal", "he_normal", "lecun_normal", "variance_scaling"):
        assert abs(w.abs().max() / (2 * std / initializers.TRUNCATED_STD) - 1) < 0.01


def test_a_normal_without_spread_is_its_mean():
    assert initializers.TruncatedNormal(2.0, 0.0)((3, 4)).unique().tolist() == [2.0]


def test_variance_scaling_modes():
    def std(**kwargs):
        return initializers.VarianceScaling(**kwargs)((40, 30, 50), torch.float64).std().item()

    assert abs(std(scale=2.0, mode="fan_out", distribution="uniform") / (2 / 50) ** 0.5 - 1) < 0.02
    assert abs(std(mode="fan_avg", distribution="untruncated_normal") / (1 / 40) ** 0.5 - 1) < 0.02
    assert abs(std(distribution="normal", fan_mode="keras") / (1 / 1200) ** 0.5 - 1) < 0.02


DRAWN = sorted({n for n, cls in initializers.INITIALIZERS.items() if n.islower() and "seed" in vars(cls())})


@pytest.mark.parametrize("name", DRAWN)
def test_seeds_determine_the_kernel(name):
    def kernel(seed, **kwargs):
        initializer = {"class_name": name, "config": {"seed": seed}}
        return lc_triton.LocallyConnected1D(
            4, 3, kernel_initializer=initializer, input_shape=(9, 2), **kwargs
        ).get_weights()[0]

    torch.manual_seed(0)
    first = kernel(7)
    torch.manual_seed(1)
    assert np.array_equal(kernel(7), first)
    assert not np.isclose(kernel(8), first).any()
    assert np.array_equal(kernel(7, implementation=3), first.transpose(0, 2, 1).flatten())
    assert not np.isclose(kernel(None), kernel(None)).any()


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_keras_fans_are_of_the_whole_variable(implementation):
    def drawn(name):
        initializer = {"class_name": name, "config": {"fan_mode": "keras", "seed": 1}}
        layer = lc_triton.LocallyConnected2D(
            16,
            3,
            padding="keras_same",
            kernel_initializer=initializer,
            implementation=implementation,
            input_shape=(9, 9, 8),
            dtype="float64",
        )
        kernel = torch.from_numpy(layer.get_weights()[0])
        return kernel[kernel != 0]

    connected = (7 * 3 + 2 * 2) ** 2 * 8 * 16
    fan_in, fan_out = {
        1: (81 * 72, 81 * 16),
        2: (81 * 8 * 81, 81 * 8 * 9 * 16),
        3: (connected, connected),
    }[implementation]
    w = drawn("lecun_uniform")
    assert len(w) == (81 * 72 * 16 if implementation == 1 else connected)
    assert abs(w.abs().max() / (3 / fan_in) ** 0.5 - 1) < 0.01
    assert abs(w.std() / fan_in**-0.5 - 1) < 0.02
    assert abs(drawn("glorot_normal").std() / (2 / (fan_in + fan_out)) ** 0.5 - 1) < 0.02
