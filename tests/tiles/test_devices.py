"""Devices by name, from a file, and from the driver's properties of an unknown GPU."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from lc_triton import cli
from lc_triton.errors import ArgumentTypeError, DeviceFileError, UnknownNameError
from lc_triton.tiles import device as devices
from lc_triton.tiles import device_file, model, workloads
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import DEVICES, by_name, from_properties, of_gpu
from lc_triton.tiles.task import Task


def properties(name, arch, count, clock, memory_clock, pins, **more):
    """The properties that a driver gives, with clocks in kHz; the arguments are in MHz."""
    major, minor = divmod(arch, 10) if isinstance(arch, int) else (9, 4)
    fields = {
        "name": name,
        "major": major,
        "minor": minor,
        "gcnArchName": "" if isinstance(arch, int) else arch,
        "multi_processor_count": count,
        "clock_rate": 1000 * clock,
        "memory_clock_rate": 1000 * memory_clock,
        "memory_bus_width": pins,
        "warp_size": 32 if isinstance(arch, int) else 64,
        "max_threads_per_multi_processor": 2048,
        "regs_per_multiprocessor": 65536,
        "shared_memory_per_block_optin": 232_448,
        "is_integrated": 0,
    }
    return SimpleNamespace(**fields | more)


# Bandwidth in GB/s and dense bfloat16 in TFLOP/s, by the vendors' data sheets. The sheet of GB10 has 1 PFLOP/s of
# sparse FP4, which is eight times the dense 16-bit rate. The last devices are known: the rule is not used for them, and
# they only show its error.
SHEETS = [
    (properties("NVIDIA L40S", 89, 142, 2520, 9001, 384), 864, 362),
    (properties("NVIDIA GeForce RTX 5090", 120, 170, 2407, 14001, 512), 1792, 209.5),
    (properties("NVIDIA GB10", 121, 48, 2418, 4266, 256, is_integrated=1), 273, 125),
    (properties("NVIDIA GB10", 121, 48, 2418, 8533, 256, is_integrated=1), 273, 125),
    (properties("NVIDIA H20", 90, 78, 1980, 2619, 6144), 4000, 148),
    (properties("NVIDIA B300 SXM6 AC", 103, 148, 2032, 3996, 8192), 8000, 2250),
    (properties("AMD Instinct MI355X", "gfx950:sramecc+:xnack-", 256, 2400, 2000, 8192), 8000, 2500),
    (properties("AMD Instinct MI250X", "gfx90a:sramecc+:xnack-", 110, 1700, 1600, 4096), 1638, 191.5),
    (properties("NVIDIA L4", 89, 58, 2040, 6251, 192), 300, 121),
    (properties("NVIDIA A100-PCIE-40GB", 80, 108, 1410, 1215, 5120), 1555, 312),
    (properties("NVIDIA H100 PCIe", 90, 114, 1755, 1593, 5120), 2000, 756),
    (properties("NVIDIA RTX A6000", 86, 84, 1800, 8001, 384), 768, 155),
    (properties("Tesla V100-SXM2-32GB", 70, 80, 1530, 877, 4096), 900, 125),
    (properties("unknown H100", 90, 132, 1830, 2619, 5120), 3350, 989),
    (properties("unknown MI300X", "gfx942", 304, 2100, 1300, 8192), 5300, 1307),
]


@pytest.mark.parametrize(("properties_", "memory", "tensor"), SHEETS, ids=lambda v: getattr(v, "name", ""))
def test_rates_of_an_unknown_gpu_are_near_its_data_sheet(properties_, memory, tensor):
    device = from_properties(properties_)
    assert device.memory_rate == pytest.approx(1e9 * memory, rel=0.25)
    assert device.tensor_rate == pytest.approx(1e12 * tensor, rel=0.25)
    assert device.clock == 1e3 * properties_.clock_rate
    assert 2e12 < device.l2_rate < 1.2e13 or device.multiprocessors < 100
    assert device.note.startswith("derived from the driver's clocks")
    assert (device.multiprocessors, device.full_name) == (properties_.multi_processor_count, properties_.name)
    assert device.arch == (properties_.gcnArchName.partition(":")[0] or properties_.major * 10 + properties_.minor)


@pytest.mark.parametrize("name", sorted(set(DEVICES) - {"mi300x"}))
def test_known_devices_keep_their_rates_and_take_the_drivers_sizes(name):
    known = DEVICES[name]
    found = from_properties(properties(known.full_name, known.arch, 7, 1, 1, 1, max_threads_per_multi_processor=1024))
    assert found == replace(known, multiprocessors=7, warps=32, shared_bytes=232_448)


def test_a_driver_without_clocks():
    """Clocks are then assumed, as the note says, and a layer can run."""
    device = from_properties(properties("NVIDIA Thing", 120, 50, 0, 0, 0))
    assert device.note.endswith("its clock and its memory's rate assumed, for the driver does not say")
    layer = workloads.parse_shape("20x20x16,k3,f16", [4]).geometry
    assert model.choose(Task("forward", layer, 4, "bfloat16", "bfloat16"), device)
    bare = SimpleNamespace(name="NVIDIA Bare", major=9, minor=0, multi_processor_count=10)
    assert from_properties(bare).shared_bytes == 101_376


def test_every_pass_has_a_tile_on_a_derived_gpu():
    layer = workloads.parse_shape("20x20x16,k3,f16", [32]).geometry
    for found, _, _ in SHEETS[:7]:
        device = from_properties(found)
        for pass_name in PASSES:
            task = Task(pass_name, layer, 32, "bfloat16", "bfloat16")
            assert model.predict(task, device, model.choose(task, device)) >= model.roofline(task, device) > 0


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("H200", "h200"),
        ("nvidia h200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("nvidia geforce rtx 4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("H100-SXM5", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_names(name, short):
    assert by_name(name) is DEVICES[short]


@pytest.mark.parametrize("name", ["h100 pcie", "NVIDIA A100-SXM4-40GB", "rtx 4090 d", "", "nvidia"])
def test_other_models_of_a_family_are_unknown_names(name):
    with pytest.raises(UnknownNameError):
        by_name(name)


def test_a_device_that_is_not_a_text():
    with pytest.raises(ArgumentTypeError, match="device must be one of a100"):
        by_name(3)


@pytest.fixture
def l40s(tmp_path):
    device = from_properties(SHEETS[0][0])
    path = tmp_path / "devices.json"
    path.write_text(device_file.to_text({device.name: device}))
    return device, path


def test_a_file_of_own_devices(l40s):
    device, path = l40s
    own = device_file.read(path)
    assert own == {"l40s": device}
    assert by_name("NVIDIA L40s", own) == device
    mine = replace(DEVICES["h200"], memory_rate=1e12)
    assert by_name("NVIDIA H200", {"h200": mine}) == mine


ENTRY = asdict(DEVICES["h200"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it cannot be read"),
        ("[]", 'it must be an object with a list "devices"'),
        ([3], "device 1: a device must be an object, got 3"),
        ([ENTRY, ENTRY], "device 2: name must be given once, got 'h200'"),
        ([ENTRY | {"cores": 3}], "device 1: field 'cores' is not known"),
        ([{k: v for k, v in ENTRY.items() if k != "clock"}], "device 1: clock must be given"),
        ([ENTRY | {"name": ""}], "device 1: name must be a string, got ''"),
        ([ENTRY | {"arch": "sm_90"}], "device 1: arch must be an integer >= 70, got 'sm_90'"),
        ([ENTRY | {"multiprocessors": 1.5}], "device 1: multiprocessors must be an integer >= 1, got 1.5"),
        ([ENTRY | {"memory_rate": "4e12"}], "device 1: memory_rate must be a number, got '4e12'"),
        ([ENTRY | {"memory_rate": -1}], "device 1: memory_rate must be a number above 0, got -1"),
    ],
)
def test_a_wrong_file(content, message, tmp_path):
    path = tmp_path / "d.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"devices": content}))
    with pytest.raises(DeviceFileError) as caught:
        device_file.read(path)
    assert f"device file {path} cannot be used: {message}" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; says what happens without one")
def test_env_devices_without_a_gpu_is_refused(capsys):
    assert cli.main(["env", "--devices"]) == 2
    assert "--devices must be given where torch sees a GPU, and it sees none" in capsys.readouterr().err


@pytest.fixture
def l40s_driver(monkeypatch):
    """A driver that reports an L40S."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SHEETS[0][0])
    devices._of_gpu.cache_clear()
    yield
    devices._of_gpu.cache_clear()


def test_derived_rates_are_printed(l40s_driver, capsys):
    assert of_gpu(0).name == "l40s"
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA L40S: memory 778 GB/s, L2 5,725 GB/s, 16-bit products 330 TFLOP/s, clock 2.52 GHz (derived" in out
    assert cli.main(["env", "--devices"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == [asdict(of_gpu(0))]
    assert cli.main(["tune", "--dry-run", "--shapes", "20x20x16,k3,f16", "--batches", "4"]) == 0
    assert "By the model, NVIDIA L40S has memory 778 GB/s" in capsys.readouterr().out
