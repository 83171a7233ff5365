"""The demonstration and the command line around it."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import cli, errors
from lc_triton.demo import Settings, checkpoint, run
from lc_triton.demo.data import Digits
from lc_triton.demo.networks import NETWORKS
from lc_triton.demo.training import Run

SMALL = ["demo", "--batch-size", "400", "--epochs", "3", "--device", "cpu"]


def weights(folder):
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {
        f"{name}/{k}": v
        for name, state in content["runs"].items()
        for k, v in {**state["network"], **{f"o{i}": s for i, s in moments(state)}}.items()
    }


def moments(state):
    for i, moment in state["optimizer"]["state"].items():
        yield i, moment["exp_avg"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of three epochs."""
    out = tmp_path_factory.mktemp("demo")
    assert cli.main([*SMALL, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_locally_connected_layers_reach_96_percent_of_the_held_out_digits():
    settings = Settings()
    digits = Digits.load(torch.device("cpu"), torch.float32)
    assert (len(digits.train_x), len(digits.test_x)) == (1437, 360)
    training = Run(NETWORKS["locally connected"], settings, digits)
    training.train("locally connected", lambda: None)
    assert training.history.test_accuracy[-1] >= 0.96
    assert training.history.train_loss[-1] < 0.1 * training.history.train_loss[0]


@pytest.mark.slow
def test_the_fused_optimizer_trains_alike_and_resumes_to_the_bit():
    """Both optimizers train one epoch in float64; then a resumed run trains a second one like a run that goes on."""
    digits = Digits.load(torch.device("cpu"), torch.float64)
    fused, plain, resumed = (
        Run(NETWORKS["locally connected"], Settings(epochs=2, batch_size=200, dtype="float64", optimizer=name), digits)
        for name in ("fused", "torch", "fused")
    )
    for training in (fused, plain):
        training._train_epoch(SilentProgressBar())
        training.history.train_loss.append(0.0)
    for one, other in zip(fused.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    resumed.load_state_dict(copy.deepcopy(fused.state_dict()))
    for training in (fused, resumed):
        training._train_epoch(SilentProgressBar())
        assert training.network[0].weight.grad is None
    for one, other in zip(fused.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)


class SilentProgressBar:
    """A progress bar that shows nothing."""

    def update(self):
        pass


@pytest.mark.slow
def test_files_of_a_run(finished, capsys):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["networks"]) == ["locally connected", "convolution", "dense"]
    for name, r in results["networks"].items():
        assert 0 <= r["test_accuracy"] <= 1
        assert r["parameters"] == sum(p.numel() for p in NETWORKS[name]().parameters())
        assert r["seconds_per_step"] > 0
        assert {len(v) for v in r["history"].values()} == {3}
        assert r["history"]["train_loss"][-1] < r["history"]["train_loss"][0]
    assert results["networks"]["locally connected"]["path"] == "pure torch"
    assert "CPU" in results["device"]

    from matplotlib.image import imread

    image = imread(finished / "demo.png")
    assert image.shape[0] > 400
    assert image.shape[1] > 1000
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5])
def test_an_interrupted_run_ends_with_the_same_weights(after, finished, tmp_path, monkeypatch, capsys):
    saved, save = [], checkpoint.save

    def interrupt(*args):
        save(*args)
        saved.append(args)
        if len(saved) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupt)
    assert cli.main([*SMALL, "--out", str(tmp_path)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert cli.main([*SMALL, "--out", str(tmp_path), "--resume"]) == 0
    assert f"locally connected {min(after, 3)}/3" in capsys.readouterr().out
    assert len(saved) == 9
    one, other = weights(finished), weights(tmp_path)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_ctrl_c_in_a_real_process(tmp_path):
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "lc_triton.cli",
        "demo",
        "--epochs",
        "2000",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    # A shell starts background jobs with SIGINT ignored.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=restore_sigint
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt"]
    runs = checkpoint.load(tmp_path / "checkpoint.pt", Settings(epochs=2000, device="cpu").fingerprint)
    assert len(runs["locally connected"]["history"]["train_loss"]) >= 1


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_more(finished, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    assert cli.main([*SMALL, "--out", str(tmp_path), "--resume"]) == 0
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(finished).items())


@pytest.mark.slow
def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(tmp_path, capsys):
    arguments = [*SMALL, "--epochs", "1", "--out", str(tmp_path / "new" / "folder")]
    assert cli.main([*arguments, "--resume"]) == 0
    assert "does not exist yet: starting from the beginning" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "is of an earlier run and will be replaced" in capsys.readouterr().out


def damaged_copies(content):
    middle = len(content) // 2
    return {
        "truncated": content[:-100],
        "empty": b"",
        "flipped": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "text": b"this is no checkpoint",
    }


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text"])
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(damage, finished, tmp_path, capsys):
    content = damaged_copies((finished / "checkpoint.pt").read_bytes())[damage]
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert cli.main([*SMALL, "--out", str(tmp_path), "--resume"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lc-triton: checkpoint {path} cannot be used: it")
    assert err.rstrip().endswith("the file was left as it is")
    assert err.count("\n") == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [1, 2], "it is no checkpoint of this demonstration"),
        (lambda c: c | {"kind": "other"}, "it is no checkpoint of this demonstration"),
        (lambda c: c | {"version": 99}, "it has version 99, this lc_triton reads version 1"),
        (
            lambda c: c | {"settings": c["settings"] | {"seed": 7}},
            "it was made with seed=7: resume with the",
        ),
        (lambda c: c | {"settings": None}, "it is no checkpoint of this demonstration"),
        (lambda c: c | {"runs": {}}, "its contents do not fit (KeyError"),
        (lambda c: c | {"runs": None}, "its contents do not fit (TypeError"),
        (
            lambda c: c | {"runs": c["runs"] | {"dense": c["runs"]["convolution"]}},
            "its contents do not fit (RuntimeError",
        ),
    ],
    ids=["list", "kind", "version", "settings", "no_settings", "empty", "no_runs", "other_network"],
)
def test_a_checkpoint_of_something_else_is_refused(change, message, finished, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(change(torch.load(finished / "checkpoint.pt", weights_only=True)), path)
    before = path.read_bytes()
    with pytest.raises(errors.CheckpointError) as caught:
        run(Settings(epochs=3, batch_size=400, device="cpu", out=tmp_path, resume=True))
    assert message in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_train(dtype):
    settings = Settings(epochs=4, dtype=dtype, device="cpu")
    digits = Digits.load(torch.device("cpu"), torch.float64 if dtype == "float64" else torch.float32)
    training = Run(NETWORKS["locally connected"], settings, digits)
    training.train("", lambda: None)
    assert {p.dtype for p in training.network.parameters()} == {digits.train_x.dtype}
    assert training.history.test_accuracy[-1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "0"], "nproc must be an integer >= 1, got 0"),
        (["--nproc", "2", "--epochs", "0"], "epochs must be an integer >= 1, got 0"),
        (["--epochs", "0"], "epochs must be an integer >= 1, got 0"),
        (["--batch-size", "-3"], "batch_size must be an integer >= 1, got -3"),
        (["--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["--dtype", "float31"], "dtype 'float31' is not known (did you mean 'float32'?)"),
        (["--device", "gpu"], "device must be one of auto, cpu"),
        (["--device", "cuda:99"], "device must be one of auto, cpu"),
        (["--out", __file__], "out must be a folder, or the name of a new one"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert cli.main(["demo", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lc-triton: " + message)
    assert err.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert 'needs scikit-learn, which is not installed: pip install "lc-triton[demo]"' in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_env_and_version(capsys):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"lc-triton:          {lc_triton.__version__}\n" in out
    assert torch.__version__ in out
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"lc-triton {lc_triton.__version__}\n"
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Settings(device="cuda", nproc=2).nproc == 2
    assert Settings(device="cpu", nproc=9).nproc == 9
    for device, nproc in (("cuda", 3), ("auto", 3), ("cuda:1", 2)):
        with pytest.raises(
            errors.ArgumentValueError, match=rf"nproc must be .*at most 2 with --device cuda.* got {nproc}"
        ):
            Settings(device=device, nproc=nproc)


ONE_STEP = ["demo", "--batch-size", "1437", "--epochs", "1", "--device", "cpu"]
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


def run_two_processes(*arguments):
    """Run the demonstration on two processes, by its command."""
    command = [sys.executable, "-m", "lc_triton.cli", *ONE_STEP, "--nproc", "2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.subprocess
@pytest.mark.slow
@needs_gloo
def test_two_processes_train_as_one(tmp_path, capsys):
    """Their files are those of one process, and one process resumes from their checkpoint."""
    one, two = tmp_path / "one", tmp_path / "two"
    done = run_two_processes("--out", two)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("2 processes share these layers by their positions.") == 1
    assert cli.main([*ONE_STEP, "--out", str(one)]) == 0
    assert sorted(os.listdir(one)) == sorted(os.listdir(two)) == ["checkpoint.pt", "demo.png", "results.json"]
    want, got = weights(one), weights(two)
    assert want.keys() == got.keys()
    for name in want:
        # AdamW's first step has one length for any gradient, even a rounding error, so single weights may differ.
        assert (got[name] - want[name]).abs().mean() < 1e-5, name
    before = (two / "checkpoint.pt").read_bytes()
    assert cli.main([*ONE_STEP, "--out", str(two), "--resume"]) == 0
    assert "epochs done: locally connected 1/1, convolution 1/1, dense 1/1" in capsys.readouterr().out
    assert (two / "checkpoint.pt").read_bytes() == before


@pytest.mark.subprocess
@pytest.mark.slow
@needs_gloo
@pytest.mark.nightly
@pytest.mark.parametrize("wrong", ["checkpoint", "folder"])
def test_errors_on_two_processes_are_one_line(wrong, tmp_path):
    if wrong == "checkpoint":
        (tmp_path / "checkpoint.pt").write_bytes(b"junk")
        done, status, message = (
            run_two_processes("--out", tmp_path, "--resume"),
            2,
            f"checkpoint {tmp_path}/checkpoint.pt cannot",
        )
    else:
        (tmp_path / "file").write_text("")
        done, status, message = run_two_processes("--out", tmp_path / "file" / "out"), 1, "Not a directory"
    own = [line for line in done.stderr.splitlines() if line.startswith("lc-triton: ")]
    assert done.returncode == status, done.stderr
    assert len(own) == 1
    assert message in own[0]
    assert "Traceback" not in done.stderr
