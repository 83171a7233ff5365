"""Files of tiles: round trips, concurrent and killed writers, and files that cannot be used."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace

import pytest
from filelock import FileLock

from lc_triton.core.geometry import Geometry
from lc_triton.errors import ConfigFileError, LocalConvError
from lc_triton.tiles import store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.entries import Measured, Simulated
from lc_triton.tiles.key import ProblemKey, bucket
from lc_triton.tiles.task import Task

LAYER = Geometry.make((8, 9), 16, 32, 3, stride=2, padding=1)
KEY = Task("forward", LAYER, 20, "bfloat16", "float32").key
# Invented times, which only the tests of the file format use.
MEASURED = Measured(
    TileConfig(2, 4, 32, 64, 32, num_warps=8),
    10.5,
    10.0,
    11.0,
    1000.0,
    50.0,
    0.5,
    TileConfig(1, 1, 32, 64, 32, swap=True),
    12.0,
    True,
    "2026-01-02",
    "2.13.0",
    "3.7.1",
    store.kernel_hash("forward"),
)
SIMULATED = Simulated(
    TileConfig(1, 4, 32, 64, 32),
    9.5,
    12.5,
    0.6,
    TileConfig(1, 2, 32, 64, 32),
    9.75,
    40,
    True,
    "2026-01-02",
    "2.13.0",
    "3.7.1",
    store.kernel_hash("forward"),
    1,
    {"memory_rate": 4.3e12, "port_bytes": 48.0},
)


@pytest.fixture(autouse=True)
def _fresh():
    store.read_or_warn.cache_clear()


def test_batches_share_a_bucket_up_to_the_next_power_of_two():
    assert [bucket(b) for b in (0, 1, 2, 3, 4, 5, 33, 64)] == [1, 1, 2, 4, 4, 8, 64, 64]
    assert Task("forward", LAYER, 32, "bfloat16", "float32").key == KEY
    assert KEY.at(33).batch == 64


def test_round_trip(tmp_path):
    path = store.file_of(tmp_path, "sm_90", "nvidia_h200", "forward")
    assert path == tmp_path / "sm_90" / "nvidia_h200" / "forward.json"
    assert store.read(path) == {}
    store.merge(path, "NVIDIA H200", "forward", {KEY: MEASURED})
    store.merge(path, "NVIDIA H200", "forward", {KEY.at(64): replace(MEASURED, runner_up=None, runner_up_us=None)})
    faster = replace(MEASURED, median_us=9.0)
    store.merge(path, "NVIDIA H200", "forward", {KEY: faster})
    entries = store.read(path)
    assert entries == {KEY: faster, KEY.at(64): replace(MEASURED, runner_up=None, runner_up_us=None)}
    content = json.loads(path.read_text())
    assert (content["schema"], content["device"], content["face"]) == (1, "NVIDIA H200", "forward")


def test_updates_and_stored_gradients_have_separate_entries(tmp_path):
    """Each rule and each kind of states has its own key. Keys of older files have neither."""
    path, stored = tmp_path / "weight_grad.json", Task("weight_grad", LAYER, 20, "bfloat16", "float32")
    tasks = [stored, *(replace(stored, update=rule) for rule in ("adamw", "momentum", "sgd", "square_sum"))]
    tasks += [replace(tasks[1], state_dtype=dtype) for dtype in ("bfloat16", "int8")]
    for i, task in enumerate(tasks):
        store.merge(path, "NVIDIA H200", "weight_grad", {task.key: replace(MEASURED, median_us=i)})
    assert {key: entry.median_us for key, entry in store.read(path).items()} == {t.key: i for i, t in enumerate(tasks)}
    problems = [entry["problem"] for entry in json.loads(path.read_text())["entries"]]
    assert sum("update" in problem for problem in problems) == 6
    assert sum("state_dtype" in problem for problem in problems) == 2
    assert "update" not in KEY.to_json()
    assert replace(stored, update="nesterov").key == replace(stored, update="momentum").key
    assert replace(stored, update="add").key == replace(stored, update="sgd").key


def test_the_source_of_updates_is_hashed_only_for_updates():
    stored = Task("weight_grad", LAYER, 20, "bfloat16", "float32")
    assert store.kernel_hash_of(stored) == store.kernel_hash("weight_grad")
    assert store.kernel_hash_of(replace(stored, update="adamw")) != store.kernel_hash("weight_grad")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"update": "adam"}, "update must be one of adamw, momentum, sgd, square_sum, got 'adam'"),
        ({"state_dtype": "int8"}, "state_dtype must be one of bfloat16, int8 with the update adamw"),
        ({"update": "sgd", "state_dtype": "int8"}, "state_dtype must be one of bfloat16, int8 with the update adamw"),
        ({"update": "adamw", "state_dtype": "int4"}, "state_dtype must be one of bfloat16, int8 with"),
        ({"rule": "adamw"}, "problem must be an object of"),
    ],
)
def test_keys_of_unknown_updates_are_refused(fields, message):
    with pytest.raises(LocalConvError, match=message):
        ProblemKey.from_json(KEY.to_json() | fields)


@pytest.mark.parametrize("order", [(MEASURED, SIMULATED), (SIMULATED, MEASURED)], ids=["measured first", "last"])
def test_a_measured_and_a_simulated_tile_of_one_problem_are_both_kept(order, tmp_path):
    path = tmp_path / "forward.json"
    for entry in order:
        store.merge(path, "NVIDIA H200", "forward", {KEY: entry})
    other = replace(SIMULATED, choice_us=None, runner_up=None, runner_up_us=None, finished=False)
    store.merge(path, "NVIDIA H200", "forward", {KEY.at(64): other})
    entries = store.read(path)
    assert entries == {KEY: MEASURED}
    assert entries.simulated == {KEY: SIMULATED, KEY.at(64): other}
    assert [entry.get("source") for entry in json.loads(path.read_text())["entries"]] == [
        None,
        "simulated",
        "simulated",
    ]
    later = replace(SIMULATED, simulated_us=9.25)
    store.merge(path, "NVIDIA H200", "forward", {KEY: later})
    assert store.read(path).simulated[KEY] == later
    assert store.read(path) == {KEY: MEASURED}


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from lc_triton.tiles import store
from tests.tiles.test_store import KEY, MEASURED
path, number = Path(sys.argv[1]), int(sys.argv[2])
for i in range(int(sys.argv[3])):
    key = replace(KEY, positions=1000 * number + i + 1)
    store.merge(path, "GPU", "forward", {key: MEASURED})
    print(i, flush=True)
"""


def writer(path, number, count):
    command = [sys.executable, "-c", WRITER, str(path), str(number), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_eight_processes_lose_no_entry(tmp_path):
    path = tmp_path / "forward.json"
    writers = [writer(path, n, 5) for n in range(8)]
    for w in writers:
        _, err = w.communicate(timeout=200)
        assert w.returncode == 0, err
    assert {k.positions for k in store.read(path)} == {1000 * n + i + 1 for n in range(8) for i in range(5)}


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_killed_writer_leaves_a_readable_file(tmp_path):
    path = tmp_path / "forward.json"
    for attempt in range(4):
        process = writer(path, attempt, 10_000)
        written = int(process.stdout.readline())
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = {k.positions for k in store.read(path)}
        assert 1000 * attempt + written + 1 in kept
    store.merge(path, "GPU", "forward", {KEY: MEASURED})  # the killed processes left no lock
    assert KEY in store.read(path)


def valid():
    return {
        "kind": "lc_triton tiles",
        "schema": 1,
        "device": "GPU",
        "face": "forward",
        "entries": [{"problem": KEY.to_json(), **json.loads(json.dumps(asdict(MEASURED)))}],
    }


def changed(**changes):
    content = valid()
    content["entries"][0] |= changes
    return json.dumps(content)


def simulated(**changes):
    content = valid()
    content["entries"].append({"problem": KEY.to_json(), **json.loads(json.dumps(asdict(SIMULATED))), **changes})
    return json.dumps(content)


def tile(**changes):
    return {**vars(MEASURED.config), **changes}


UNUSABLE = {
    "truncated": (json.dumps(valid())[:-20], "it cannot be read"),
    "empty": ("", "it cannot be read"),
    "binary": ("\udcff\udcfe", "it cannot be read"),
    "foreign": ('{"triton_version": "3.4", "1": {"BLOCK_SIZE_M": 16}}', "it holds no tiles of lc_triton"),
    "list": ("[]", "it holds no tiles of lc_triton"),
    "future": (json.dumps(valid() | {"schema": 2}), "it has schema 2, this lc_triton reads schema 1"),
    "no_entries": (json.dumps({k: v for k, v in valid().items() if k != "entries"}), "entry 0 is wrong"),
    "text_entry": (json.dumps(valid() | {"entries": ["a"]}), "entry 0 is wrong"),
    "no_median": (changed(median_us=None), "median_us must be a number >= 0, got None"),
    "nan": (changed(median_us=float("nan")), "median_us must be a number >= 0, got nan"),
    "unknown_field": (changed(speed=1), "entry must be an object of config, date"),
    "odd_block": (changed(config=tile(block_f=24)), "block_f must be a power of two, got 24"),
    "bool_block": (changed(config=tile(block_f=True)), "block_f must be of type int, got True"),
    "no_stages": (changed(config={}), "config must be an object of block_b"),
    "problem": (changed(problem=KEY.to_json() | {"kernel": [3, 3]}), "kernel must be four integers, got [3, 3]"),
    "dtype": (changed(problem=KEY.to_json() | {"dtype": "int8"}), "dtype must be one of float16"),
    "source": (changed(source="guessed"), "entry must be an object of choice_us, config"),
    "guessed": (simulated(source="guessed"), "source must be simulated, got 'guessed'"),
    "simulated_nan": (simulated(simulated_us=float("nan")), "simulated_us must be a number >= 0, got nan"),
    "simulated_median": (simulated(median_us=1.0), "entry must be an object of choice_us, config"),
    "no_constants": (simulated(constants=[1]), "constants must be an object of numbers, got [1]"),
    "constants": (simulated(constants={"clock": "fast"}), "clock must be a number >= 0, got 'fast'"),
    "date": (changed(date=2026), "date must be a string, got 2026"),
    "unfinished": (changed(finished=1), "finished must be true or false, got 1"),
    "thin_dot": (changed(config=tile(block_b=8)), "block_f, block_b and block_k to use tl.dot"),
    "streamed_split": (changed(config=tile(stream=2, split=2)), "without split and with tl.dot to stream blocks of k"),
    "choice": (simulated(choice_us="fast"), "choice_us must be a number >= 0 or null, got 'fast'"),
    "runner_up_us": (changed(runner_up_us="fast"), "runner_up_us must be a number >= 0 or null, got 'fast'"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_is_reported_once_skipped_and_unchanged(name, tmp_path):
    text, message = UNUSABLE[name]
    path = tmp_path / "forward.json"
    path.write_text(text, errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(ConfigFileError) as caught:
        store.read(path)
    assert message in str(caught.value)
    with pytest.warns(RuntimeWarning) as warned:
        assert store.read_or_warn(path) == {}
    assert len(warned) == 1
    warning = str(warned[0].message)
    assert any(f"file {path} is not used: {start}" in warning for start in ("it", "entry 0", "entry 1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read_or_warn(path) == {}
    with pytest.raises(ConfigFileError):
        store.merge(path, "GPU", "forward", {KEY: MEASURED})
    assert path.read_bytes() == before


def test_a_valid_file_is_valid(tmp_path):
    path = tmp_path / "forward.json"
    path.write_text(simulated())
    assert store.read(path) == {KEY: MEASURED}
    assert store.read(path).simulated == {KEY: SIMULATED}


def test_a_lock_that_another_holds_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.01)
    path = tmp_path / "forward.json"
    with FileLock(path.with_suffix(".lock")), pytest.raises(ConfigFileError, match="another process has held its lock"):
        store.merge(path, "GPU", "forward", {KEY: MEASURED})
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigFileError, match="it cannot be written"):
        store.merge(tmp_path / "file" / "forward.json", "GPU", "forward", {KEY: MEASURED})


def kernel_modules(*names):
    """Modules of the kernels by name, with those that they import."""
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            source = (store.KERNELS / f"{name}.py").read_text()
            todo += re.findall(r"^from lc_triton\.kernels\.(\w+) import", source, re.M)
    return found


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_hash_is_of_the_launched_kernels(pass_name, tmp_path, monkeypatch):
    """The hash is of the kernel of the pass and of the launches before and after it, without those of updates."""
    shutil.copytree(store.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(store, "KERNELS", tmp_path / "kernels")
    kernel_hash = store.kernel_hash.__wrapped__
    before = kernel_hash(pass_name)
    assert len(before) == 12
    assert len({kernel_hash(name) for name in PASSES}) == 3
    other_launches = {"forward": ["pad_channels"], "input_grad": [], "weight_grad": ["shared_weight_grad"]}[pass_name]
    launched = kernel_modules(pass_name, "combine", *other_launches)
    launched -= {"update"}
    for file in store.KERNELS.glob("[a-z]*.py"):
        source = file.read_bytes()
        file.write_bytes(source + b"changed = 1\n")
        assert (kernel_hash(pass_name) != before) is (file.stem in launched), file.name
        file.write_bytes(source)


def test_the_hash_depends_on_code_and_not_on_its_comments(tmp_path, monkeypatch):
    """Measured tiles stay in use where only comments, docstrings or empty lines of a kernel change."""
    kernel_hash = store.kernel_hash.__wrapped__
    monkeypatch.setattr(store, "KERNELS", tmp_path)
    for name in ("common.py", "combine.py", "input_grad.py"):
        (tmp_path / name).write_text("")

    def hash_of(source):
        (tmp_path / "input_grad.py").write_text(source)
        return kernel_hash("input_grad")

    plain = "def f(a):\n    x = a\n    return x\n"
    commented = (
        '"""A module."""\n\n# A comment.\ndef f(a):\n    """What f returns."""\n\n'
        "    x = a  # A comment.\n    # Another.\n    return x\n"
    )
    assert hash_of(commented) == hash_of(plain)
    others = [
        "def f(a):\n    x = a\n    return a\n",
        "def f(a):\n    x = 'a'\n    return x\n",
        "def f(a):\n    x = a\nreturn x\n",
        "x = a\n-b\n",
        "x = a - b\n",
        "",
    ]
    assert len({hash_of(source) for source in (plain, *others)}) == 7


@pytest.mark.subprocess
@pytest.mark.slow
def test_importing_the_package_reads_no_configuration():
    code = "import sys, lc_triton; sys.exit('filelock' in sys.modules or 'lc_triton.tiles.store' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
