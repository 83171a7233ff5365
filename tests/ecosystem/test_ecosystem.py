"""The examples of docs/ecosystem.md with other libraries, compared with plain torch.

The extra `ecosystem`, which `all` does not include, has them: `pip install -e ".[dev,ecosystem]" -c constraints.txt`.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lc_triton
from tests.cases import assert_close

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
MISSING = "of the extra ecosystem, which is not installed"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.subprocess]


@pytest.fixture
def section(tmp_path, monkeypatch):
    """A function that runs the first block of the page and the blocks of a section, and returns their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(title):
        names = {"__name__": "page"}
        first, *sections = PAGE.read_text().split("\n## ")
        (chosen,) = [text for text in sections if text.startswith(f"{title}\n")]
        for text in (first, chosen):
            for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
                exec(compile(block, f"{PAGE.name}: {title}", "exec"), names)
        return names

    return run


def trained(names, optimizer, epochs):
    """The state of the page's network after training with plain torch, without shuffling."""
    torch.manual_seed(0)
    names["TensorDataset"](torch.randn(24, 1, 8, 8), torch.randint(3, (24,)))  # the page draws its data first
    net = names["network"]()
    steps = optimizer(net.parameters())
    for _ in range(epochs):
        for x, target in names["DataLoader"](names["dataset"], batch_size=8):
            steps.zero_grad()
            nn.functional.cross_entropy(net(x), target).backward()
            steps.step()
    return net.state_dict()


def test_lightning(section):
    pytest.importorskip("lightning", reason=MISSING)
    names = section("Lightning")
    want = trained(names, lambda p: torch.optim.AdamW(p, lr=1e-2), 2)
    for name, value in names["classifier"].net.state_dict().items():
        assert_close(value, want[name], 1e-6)


def test_accelerate(section):
    pytest.importorskip("accelerate", reason=MISSING)
    names = section("Accelerate")
    want = trained(names, lambda p: torch.optim.SGD(p, lr=0.1), 1)
    for name, value in names["loaded"].state_dict().items():
        assert_close(value, want[name], 1e-6)


def test_transformers(section):
    pytest.importorskip("transformers", reason=MISSING)
    from safetensors.torch import load_file, save_file

    names = section("Transformers")
    state = load_file("faces/model.safetensors")
    del state["net.0.weight"]
    save_file(state, "faces/model.safetensors", metadata={"format": "pt"})
    lacking = names["Faces"].from_pretrained("faces").net[0]
    want = lc_triton.LocalConv2d(1, 4, 3, input_size=8).weight
    assert lacking.weight.isfinite().all()
    assert 0.8 < lacking.weight.std() / want.std() < 1.25  # the missing weight is initialised
    assert torch.equal(lacking.bias, names["faces"].net[0].bias)


def test_peft(section):
    peft = pytest.importorskip("peft", reason=MISSING)
    names = section("PEFT")
    assert names["tuned"].peft_config["default"].modules_to_save == ["2"]
    layers = [
        (lc_triton.LocalConv2d(2, 5, 3, 7, padding=1, stride=2, activation="silu"), (3, 2, 7, 7)),
        (lc_triton.LocalConv1d(2, 4, 3, 9, padding=1, padding_mode="reflect", activation="softmax"), (3, 2, 9)),
        (lc_triton.LocalLinear(5, 3, 4, activation="tanh"), (3, 5, 3)),
    ]
    for layer, shape in layers:
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"])
        config._register_custom_module({type(layer): names["LocalLora"]})
        model = peft.get_peft_model(nn.Sequential(layer).double(), config)
        (lora,) = [m for m in model.modules() if isinstance(m, names["LocalLora"])]
        before = layer.weight.detach().clone()
        nn.init.normal_(lora.lora_B["default"].weight)
        x = torch.randn(shape, dtype=torch.float64)
        y = model(x)
        a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
        y.square().sum().backward()
        assert layer.weight.grad is None
        assert a.grad.abs().sum() > 0
        # By definition, the output is that of the layer with the changed weight.
        n = 1 if b.ndim == 3 else b.ndim // 2 - 1  # dimensions of positions
        factors = a.reshape(*a.shape[:n], -1, 2), b.reshape(*b.shape[:n], 2, -1)
        change = 1.5 * torch.einsum("...dr,...rf->...df", *factors).reshape(before.shape)
        assert_close(lora.delta("default"), change.detach(), 1e-12)
        with torch.no_grad():
            layer.weight += change
            assert_close(y.detach(), layer(x), 1e-10)
            layer.weight.copy_(before)
        with model.disable_adapter():
            assert_close(model(x), layer(x), 1e-12)
        merged = model.merge_and_unload()
        assert_close(merged(x), y.detach(), 1e-10)
        assert type(merged[0]) is type(layer)
    grouped = nn.Sequential(lc_triton.LocalConv2d(2, 2, 1, 2, groups=2))
    config._register_custom_module({lc_triton.LocalConv2d: names["LocalLora"]})
    with pytest.raises(ValueError, match="without groups"):
        peft.get_peft_model(grouped, config)


def test_peft_stores_an_adapter(section, tmp_path):
    peft = pytest.importorskip("peft", reason=MISSING)
    names = section("PEFT")
    base, x = names["network"](), names["dataset"].tensors[0]
    state = base.state_dict()
    model = peft.get_peft_model(base, names["config"])
    for m in model.modules():
        if isinstance(m, names["LocalLora"]):
            nn.init.normal_(m.lora_B["default"].weight)
    y = model(x)
    model.save_pretrained(str(tmp_path / "adapter"))
    fresh = names["network"]()
    fresh.load_state_dict({name.replace("base_layer.", ""): value for name, value in state.items()})
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"), config=names["config"])
    assert_close(loaded(x), y, 1e-6)


def test_torchao(section):
    pytest.importorskip("torchao", reason=MISSING)
    names = section("torchao")
    x = names["dataset"].tensors[0]
    inner = names["quantized"][0](x)
    assert torch.equal(inner, lc_triton.local_conv(x, names["weight"], names["quantized"][0].bias, activation="relu"))


def test_counts_of_torchinfo():
    """torchinfo counts parameters correctly, and too many multiplications: docs/pytorch.md."""
    torchinfo = pytest.importorskip("torchinfo", reason=MISSING)
    layer = lc_triton.LocalConv2d(3, 8, 3, input_size=6)
    found = torchinfo.summary(layer, input_size=(2, 3, 6, 6), verbose=0)
    assert found.total_params == sum(p.numel() for p in layer.parameters())
    assert found.total_mult_adds == 16 * 2 * found.total_params  # 16 times too many, for 16 positions
