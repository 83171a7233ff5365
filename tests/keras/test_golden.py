"""The layers in Keras's convention, compared with data that tf_keras computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.keras import constraints, initializers
from tests.test_golden import arrays, close, leaf, load

GOLDEN = Path(__file__).parents[1] / "golden"

CASES, DATA = load("keras_cases")
REG_CON = json.loads((GOLDEN / "keras_reg_con.json").read_text())
REG_CON_DATA = np.load(GOLDEN / "keras_reg_con.npz")
INITIALIZERS = [
    r
    for r in json.loads((GOLDEN / "keras_initializers.json").read_text())["records"]
    if r["args"]["implementation"] == 1 and "error" not in r
]
DRAWN = json.loads(Path(__file__).with_name("drawn.json").read_text())["records"]


def layer_of(cls, args, input_shape, **kwargs):
    if args.get("padding") == "same":
        args = args | {"padding": "keras_same"}
    return getattr(lc_triton, cls)(**args, input_shape=input_shape[1:], dtype="float64", **kwargs)


def test_the_data_have_all_layouts():
    for cls, formats in (("LocallyConnected1D", 5), ("LocallyConnected2D", 6)):
        args = [c["args"] for c in CASES if c["cls"] == cls]
        assert len({(a.get("data_format"), a["implementation"]) for a in args}) == formats


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_a_layer_computes_what_keras_computes(case):
    data = arrays(DATA, case)
    layer = layer_of(case["cls"], case["args"], case["input_shape"])
    names = ["kernel", "bias"] if case["args"].get("use_bias", True) else ["kernel"]
    layer.set_weights([data[n].numpy() for n in names])
    if case["args"]["implementation"] == 2:  # in Keras, unused entries of the kernel have values but no gradient
        data["kernel"] = torch.where(data["dkernel"] == 0, 0, data["kernel"])
    assert [tuple(w.shape) for w in layer.get_weights()] == [tuple(data[n].shape) for n in names]
    assert all(np.array_equal(w, data[n]) for w, n in zip(layer.get_weights(), names, strict=True))
    assert layer.output_shape == (None, *case["output_shape"][1:])
    stored = ["kernel_pdf", "bias"][: len(names)]
    assert layer.count_params() == sum(data[n].numel() for n in stored)

    tolerance = 2e-8 if case["args"].get("activation") == "gelu" else 1e-9
    x = leaf(data["x"])
    y = layer(x)
    close(y, data["y"], tolerance)
    y.backward(data["g"])
    close(x.grad, data["dx"], tolerance)
    # The gradients are put into a layer as its weights, so that get_weights returns them in Keras's layout.
    gradients = layer_of(case["cls"], case["args"], case["input_shape"])
    for parameter, source in zip(gradients.parameters(), layer.parameters(), strict=True):
        parameter.data = source.grad
    for got, name in zip(gradients.get_weights(), names, strict=True):
        close(torch.from_numpy(got), data["d" + name], tolerance)


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_keras_configurations_are_read_and_returned(case):
    config = case["get_config"]
    layer = getattr(lc_triton, case["cls"]).from_config(config)
    ours = json.loads(json.dumps(layer.get_config()))
    for name, value in config.items():
        if isinstance(value, dict):
            assert ours[name]["class_name"] == value["class_name"]
        else:
            assert ours[name] == value, name


REGULARIZED = REG_CON["regularizers"]


@pytest.mark.parametrize(
    "record", REGULARIZED, ids=[f"{r['config']}_{r['on']}_{r['regularizer']}_{i}" for i, r in enumerate(REGULARIZED)]
)
def test_penalties(record):
    if record["on"] == "all":  # one record has three regularizers
        given_regularizers = {
            "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.01}},
            "bias_regularizer": "l1",
            "activity_regularizer": {"class_name": "L2", "config": {"l2": 0.1}},
        }
    else:
        config = record["regularizer_config"]  # a name, or the constants of an object
        regularizer = config if isinstance(config, str) else {"class_name": "L1L2", "config": config}
        given_regularizers = {f"{record['on']}_regularizer": regularizer}
    arguments = record["args"] | {"activation": record["activation"]} | given_regularizers
    layer = layer_of(record["cls"], arguments, record["input_shape"])
    data = {n: torch.from_numpy(REG_CON_DATA[f"reg/{record['config']}/{n}"]) for n in ("x", "kernel", "bias")}
    layer.set_weights([data["kernel"], data["bias"]])
    layer(data["x"])
    close(lc_triton.regularization_loss(layer), torch.tensor(record["model_losses"], dtype=torch.float64).sum())


CONSTRAINED = [
    (record, tensor)
    for record in REG_CON["constraints"]
    if "error" not in record  # Keras refuses some constraints on these layers
    for tensor in record["kernels"]
]


@pytest.mark.parametrize(("record", "tensor"), CONSTRAINED, ids=[f"{r['name']}_{t}" for r, t in CONSTRAINED])
def test_projections(record, tensor):
    constraint = constraints.get({"class_name": record["cls"], "config": record["config"]})
    got = constraint(torch.from_numpy(REG_CON_DATA[f"con/{tensor}/in"]))
    close(got, torch.from_numpy(REG_CON_DATA[f"con/{tensor}/{record['name']}"]))


@pytest.mark.parametrize("record", INITIALIZERS, ids=[r["initializer"] for r in INITIALIZERS])
def test_initializers_have_the_distribution_of_keras(record):
    config = {"fan_mode": "keras"} if "fan_mode" in vars(initializers.get(record["initializer"])) else {}
    if record["initializer"] == "constant":
        config = {"value": record["max"]}
    layer = layer_of(
        record["cls"],
        record["args"] | {"kernel_initializer": {"class_name": record["initializer"], "config": config}},
        record["input_shape"],
    )
    kernel = torch.from_numpy(layer.get_weights()[0])
    assert list(kernel.shape) == record["kernel_shape"]
    assert not layer.bias.any()
    if record["initializer"] == "orthogonal":  # a matrix for each position; in Keras one for all positions
        gram = kernel.mT @ kernel
        close(gram, torch.eye(gram.shape[-1], dtype=torch.float64).expand_as(gram))
        return
    spread = max(record["std"], 1e-12)
    assert abs(kernel.mean() - record["mean"]) < 0.02 * spread + 1e-12
    assert abs(kernel.std() - record["std"]) < 0.01 * spread
    is_bounded = record["initializer"] != "random_normal"  # all others are uniform, cut or constant
    for got, want in ((kernel.min(), record["min"]), (kernel.max(), record["max"])):
        assert abs(got - want) <= (0.01 if is_bounded else 0.25) * abs(want)


@pytest.mark.slow
@pytest.mark.parametrize("record", DRAWN, ids=range(len(DRAWN)))
def test_initializers_have_the_distribution_of_each_implementation(record):
    assert initializers.fans(record["shape"], "keras") == tuple(record["fans"])
    name = record["initializer"]
    config = {"fan_mode": "keras"} if "fan_mode" in vars(initializers.get(name)) else {}
    initializer = {"class_name": name, "config": {**config, "seed": 1}}
    layer = layer_of(record["cls"], record["args"] | {"kernel_initializer": initializer}, record["input_shape"])
    kernel = layer.get_weights()[0]
    assert list(kernel.shape) == record["shape"]
    kernel = kernel[kernel != 0]  # unused entries of implementation 2 are zero
    assert abs(kernel.mean() - record["mean"]) < 0.02 * record["std"]
    assert abs(kernel.std() / record["std"] - 1) < 0.01
    is_bounded = name != "random_normal"  # all others are uniform or cut
    for got, want in ((kernel.min(), record["min"]), (kernel.max(), record["max"])):
        assert abs(got / want - 1) <= (0.01 if is_bounded else 0.25)


def test_constraints_after_a_step():
    data = {k: torch.from_numpy(REG_CON_DATA[f"con_step/{k}"]) for k in ("x", "target")}
    layer = lc_triton.LocallyConnected2D(
        3,
        2,
        kernel_constraint={"class_name": "UnitNorm", "config": {"axis": 0}},  # the axis of "unit_norm" in Keras
        bias_constraint="non_neg",
        input_shape=(5, 4, 2),
        dtype=torch.float64,
    )
    layer.set_weights([REG_CON_DATA["con_step/kernel_before"], REG_CON_DATA["con_step/bias_before"]])
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    lc_triton.attach_constraints(layer, optimizer)
    torch.nn.functional.mse_loss(layer(data["x"]), data["target"]).backward()
    optimizer.step()
    for got, name in zip(layer.get_weights(), ("kernel", "bias"), strict=True):
        close(torch.from_numpy(got), torch.from_numpy(REG_CON_DATA[f"con_step/{name}_after"]))
