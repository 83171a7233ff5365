"""The command line: interruptions, closed pipes, unknown names, options that commands share, and completion."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lc_triton import _command, cli
from lc_triton.ahead import session
from lc_triton.errors import MissingTritonError
from lc_triton.tiles import workloads
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

CLI = [sys.executable, "-m", "lc_triton.cli"]
PACKAGE = [sys.executable, "-m", "lc_triton"]


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("arguments", [["--version"], ["configs"]])
def test_the_package_runs_as_the_command(arguments):
    """`python -m lc_triton` has the output and the exit status of `python -m lc_triton.cli`."""
    runs = [subprocess.run([*how, *arguments], capture_output=True, text=True, check=False) for how in (PACKAGE, CLI)]
    first, second = ((run.returncode, run.stdout, run.stderr) for run in runs)
    assert first == second
    assert first[0] in (0, 2)
    assert first[1] or first[2].startswith("lc-triton: ")


@pytest.mark.subprocess
@pytest.mark.parametrize("command", ["package", "module", "script"])
def test_ctrl_c_during_imports_is_one_line(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")  # as if Ctrl-C came during this import
    arguments = PACKAGE if command == "package" else CLI
    if command == "script":
        (tmp_path / "lc-triton").write_text("import sys; from lc_triton.cli import main; sys.exit(main())")
        arguments = [sys.executable, str(tmp_path / "lc-triton")]
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([*arguments, "env"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT  # a shell reports 130
    assert done.stderr.strip() == "lc-triton: interrupted"


@pytest.mark.subprocess
def test_an_interruption_in_another_program_keeps_its_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    code = [sys.executable, "-c", "import lc_triton"]
    done = subprocess.run(code, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["env"], ["configs", "--workload", "lrlc_l1", "--device", "h100"]])
def test_a_closed_pipe_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*CLI, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspct"], "command 'inspct' is not known (did you mean 'inspect'?); allowed: completion, configs"),
        (["configs", "--wrkload", "x"], "option of configs '--wrkload' is not known (did you mean '--workload'?)"),
        (["configs", "--all", "--devcie=h100"], "option of configs '--devcie' is not known (did you mean '--device'?)"),
        (["convert", "--otu", "x.pt"], "option of convert '--otu' is not known (did you mean '--out'?)"),
        (["configs", "--all", "--device", "NVIDIA H2OO"], "device 'NVIDIA H2OO' is not known"),
        (["configs", "--all", "--device", "mi300"], "device 'mi300' is not known (did you mean 'mi300x'?)"),
        (["completion", "fish"], "shell 'fish' is not known"),
    ],
)
def test_unknown_names_are_answered_with_known_ones(arguments, message, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lc-triton: {message}")
    assert err.count("\n") == 1
    assert "--done" not in err  # --done is for restarts only


def test_abbreviations_and_words_after_two_dashes(capsys):
    """argparse handles them: an abbreviated option is taken, a word after `--` is an unknown argument."""
    assert cli.main(["configs", "--workload", "lrlc_l2", "--js", "--face", "forward"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["configs", "--", "--wrkload"])
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


KERNELS = ["--shapes", "20x20x16,k3,f16", "--batches", "32", "64", "--dtypes", "bfloat16/float32", "tf32"]


def test_shared_options_take_several_values(capsys):
    faces = ["--faces", "forward", "weight_grad"]
    assert cli.main(["configs", *KERNELS, *faces, "--device", "NVIDIA H100 80GB HBM3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["batch"], r["dtype"], r["face"]) for r in rows] == [
        (batch, dtype, face)
        for batch in (32, 64)
        for dtype in ("bfloat16/float32", "tf32")
        for face in ("forward", "weight_grad")
    ]
    assert {r["device"] for r in rows} == {"NVIDIA H100 80GB HBM3"}
    layer = workloads.parse_shape("20x20x16,k3,f16", [32]).geometry
    task = Task("weight_grad", layer, 64, "float32", "float32", "tf32")
    assert TileConfig(**rows[-1]["config"]) == select(task, by_name("h100")).config


@pytest.mark.slow
def test_tune_takes_the_option_names_of_inspect(capsys):
    """These are `--all`, the singular options and `--face all`."""
    arguments = ["--workload", "lrlc_l2", "--batch", "64", "--dtype", "float16", "--face", "all"]
    assert cli.main(["tune", "--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.startswith("3 kernels to measure")
    assert cli.main(["tune", "--dry-run", "--all", "--batch", "64", "--face", "forward"]) == 0
    assert capsys.readouterr().out.startswith("18 kernels to measure")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faces", "weight_grad"], "--faces must be forward and what is wanted beside it"),
        (["--faces", "forward", "weight_grad", "--inference"], "--faces must be forward only, beside --inference"),
    ],
)
def test_precompile_has_the_same_options(arguments, message, tmp_path, capsys):
    assert cli.main(["precompile", *KERNELS, *arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"lc-triton: {message}")


def test_completion(capsys):
    pytest.importorskip("shtab", reason="of the extra cli, which dev has")
    for shell in ("bash", "zsh", "tcsh"):
        assert cli.main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert "precompile" in out
        assert "--workloads" in out
        assert "--done" not in out


@pytest.mark.subprocess
def test_bash_completes(capsys):
    """bash runs the script and completes a command and an option."""
    pytest.importorskip("shtab", reason="of the extra cli, which dev has")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = 'COMP_WORDS=(lc-triton {0}); COMP_CWORD={1}; _shtab_lc_triton; echo "${{COMPREPLY[@]}}"'
    for words, number, completions in (("insp", 1, "inspect"), ("tune --workloa", 2, "--workload --workloads")):
        text = f"{script}\n{ask.format(words, number)}"
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
        assert done.stdout.split() == completions.split()


def test_completion_without_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        'lc-triton: completion needs shtab, which is not installed: pip install "lc-triton[cli]"\n'
    )


def test_commands_that_compile_need_triton(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find(name, *a))
    tune = ["tune", "--offline", "--device", "h200", "--shapes", "6x6x16,k3,f16", "--batches", "32"]
    assert cli.main([*tune, "--out", str(tmp_path)]) == 2
    assert "triton" in capsys.readouterr().err
    with pytest.raises(MissingTritonError, match="precompile"), session.collecting(by_name("h200"), tmp_path):
        pass


def test_another_thread_has_no_signals_to_handle():
    def work():
        with _command.sigterm_as_interrupt():
            found.append(signal.getsignal(signal.SIGTERM))

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_other_errors_are_reported_as_python_does(capsys):
    error = ValueError("of a script")
    _command._report(ValueError, error, None)
    assert capsys.readouterr().err == "ValueError: of a script\n"
