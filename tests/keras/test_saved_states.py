"""Models that were read, in states that training and inference in torch bring them into."""

import copy
import json

import pytest
import torch
from torch.nn.utils import parametrizations

import lc_triton
from lc_triton.errors import ArgumentValueError

pytest.importorskip("h5py")
spec = pytest.importorskip("lc_triton.keras.saved.spec")
build = pytest.importorskip("lc_triton.keras.saved.model").build
filling = pytest.importorskip("lc_triton.keras.saved.filling")

L2 = {"class_name": "L2", "config": {"l2": 0.1}}


def made(*layers):
    """A chain of layers, each its class and its arguments, with weights of no special value."""
    entries = [
        {"class_name": kind, "config": {"name": f"{kind.lower()}_{i}", **config}}
        for i, (kind, config) in enumerate(layers)
    ]
    text = json.dumps({"class_name": "Sequential", "config": {"name": "chain", "layers": entries}})
    model = build(spec.parse(text, "model.json")).model
    filling.allocate(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
    return model


def penalised():
    return made(
        ("Conv1D", {"filters": 3, "kernel_size": [2], "batch_input_shape": [None, 6, 2], "activity_regularizer": L2}),
        ("ActivityRegularization", {"l2": 0.1}),
    )


def test_a_penalty_of_a_vmap_that_has_ended_is_refused():
    model, x = penalised(), torch.randn(4, 6, 2)
    torch.func.vmap(lambda one: model(one[None])[0])(x)
    with pytest.raises(ArgumentValueError, match="the activity penalty of Convolution must be of a forward whose"):
        lc_triton.regularization_loss(model)
    y = model(x)
    assert lc_triton.regularization_loss(model).isfinite()
    assert y.shape == (4, 5, 3)


def test_a_parametrized_layer_is_copied_after_a_forward():
    model, x = penalised(), torch.randn(4, 6, 2)
    parametrizations.weight_norm(model.conv1d_0)
    y = model(x)
    rebuilt = copy.deepcopy(model)
    assert torch.equal(rebuilt(x), y)
    assert lc_triton.regularization_loss(rebuilt).isfinite()


def images(dtype):
    return made(
        ("InputLayer", {"batch_input_shape": [None, 5, 5, 2], "dtype": dtype}),
        ("Rescaling", {"scale": 0.1, "offset": -0.5}),
        ("Conv2D", {"filters": 3, "kernel_size": [2, 2]}),
        ("LocallyConnected2D", {"filters": 2, "kernel_size": [2, 2]}),
        ("Flatten", {}),
        ("Dense", {"units": 2}),
    )


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16, torch.float16])
def test_inputs_are_cast_to_the_dtype_that_the_model_has_now(dtype, to):
    model = images(dtype)
    x = torch.randint(0, 20, (4, 5, 5, 2)).to(getattr(torch, dtype))
    want = model(x)
    assert want.dtype == torch.float32
    got = copy.deepcopy(model).to(to)(x)
    assert got.dtype == to
    assert (got - want).abs().max() <= {torch.float64: 1e-6}.get(to, 0.03) * want.abs().max()
    rebuilt = model.to(to).to(torch.float32)(x)
    assert rebuilt.dtype == torch.float32


def test_a_note_of_a_dtype_is_no_part_of_the_state():
    model = images("uint8")
    assert set(model.state_dict()) == {
        f"{name}.{part}" for name in ("conv2d_2", "locallyconnected2d_3", "dense_5") for part in ("weight", "bias")
    }
    assert not any(buffer.is_meta for buffer in model.buffers())
