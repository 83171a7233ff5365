"""The command line as a process: how it ends when it is interrupted, or when nobody reads what it says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "lc_triton.cli"]
PACKAGE = [sys.executable, "-m", "lc_triton"]


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("arguments", [["--version"], ["configs", "--workload", "lrlc_l1"], ["configs"]])
def test_the_package_runs_as_the_command(arguments):
    """The same output and exit status, for right and wrong input."""
    runs = [subprocess.run([*how, *arguments], capture_output=True, text=True, check=False) for how in (PACKAGE, CLI)]
    first, second = ((run.returncode, run.stdout, run.stderr) for run in runs)
    assert first == second
    assert first[0] in (0, 2)
    assert first[1] or first[2].startswith("lc-triton: ")


@pytest.mark.subprocess
@pytest.mark.parametrize("command", ["package", "module", "script"])
def test_ctrl_c_during_imports_is_one_line(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")  # as if it came just then
    arguments = PACKAGE if command == "package" else CLI
    if command == "script":
        (tmp_path / "lc-triton").write_text("import sys; from lc_triton.cli import main; sys.exit(main())")
        arguments = [sys.executable, str(tmp_path / "lc-triton")]
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([*arguments, "env"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT  # a shell says 130
    assert done.stderr.strip() == "lc-triton: interrupted"


@pytest.mark.subprocess
def test_another_programs_interruption_is_its_own(tmp_path):
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
