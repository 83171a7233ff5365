"""The order in which the sources of a tile are searched."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lc_triton import cli
from lc_triton.core import backend
from lc_triton.core.geometry import Geometry
from lc_triton.tiles import paths, store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.model import choose, ranked
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task
from tests.tiles.test_store import MEASURED, SIMULATED

LAYER = Geometry.make((8, 9), 16, 32, 3, stride=2, padding=1)
H200 = by_name("h200")
TYPES = ("bfloat16", "bfloat16")


def task(pass_name="forward", layer=LAYER, batch=32, types=TYPES):
    return Task(pass_name, layer, batch, *types)


def key(batch):
    return task(batch=batch).key


def tile(n):
    return TileConfig(1, 1, 32, 16 * 2**n, 32)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders in place of the user's and the shipped one."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(paths, "shipped_configs", lambda: shipped)
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "user")
    store.read_or_warn.cache_clear()
    yield tmp_path
    store.read_or_warn.cache_clear()


def put(folder, device, config, batch=32):
    path = store.file_of(folder, H200.arch_name, device, "forward")
    store.merge(path, device, "forward", {key(batch): replace(MEASURED, config=config)})


def put_simulated(folder, device, config, batch=32, **changes):
    path = store.file_of(folder, H200.arch_name, device, "forward")
    store.merge(path, device, "forward", {key(batch): replace(SIMULATED, config=config, **changes)})


def chosen(batch=32, device=H200):
    return select(task(batch=batch), device)


def test_the_order_of_sources(folders):
    assert (chosen().source, chosen().config) == (
        "model",
        choose(task(), H200),
    )
    put(folders / "shipped", "nvidia_h100_80gb_hbm3", tile(0))
    assert (chosen().source, chosen().config) == ("architecture", tile(0))
    put(folders / "shipped", "nvidia_h200", tile(1))
    assert (chosen().source, chosen().config) == ("shipped", tile(1))
    put(folders / "user", "nvidia_h200", tile(2))
    assert (chosen().source, chosen().config) == ("user", tile(2))
    assert chosen().path == folders / "user" / "sm_90" / "nvidia_h200" / "forward.json"
    assert chosen(device=by_name("a100")).source == "model"
    assert chosen(device=by_name("h100")).config == tile(0)


def test_any_measured_tile_precedes_a_simulated_one(folders):
    put_simulated(folders / "shipped", "nvidia_h100_80gb_hbm3", tile(0))
    assert chosen().source == "model"  # it was simulated for another GPU
    put_simulated(folders / "shipped", "nvidia_h200", tile(1))
    assert (chosen().source, chosen().config, chosen().stale) == ("simulated", tile(1), False)
    assert (chosen().measured, chosen().simulated.simulated_us) == (None, SIMULATED.simulated_us)
    assert chosen().path == folders / "shipped" / "sm_90" / "nvidia_h200" / "forward.json"
    put_simulated(folders / "user", "nvidia_h200", tile(2))
    assert (chosen().source, chosen().config) == ("simulated", tile(2))
    put(folders / "shipped", "nvidia_h100_80gb_hbm3", tile(3))
    assert (chosen().source, chosen().config, chosen().simulated) == ("architecture", tile(3), None)
    put(folders / "shipped", "nvidia_h200", tile(0), batch=64)  # in the file of a simulated tile, for twice the batch
    assert (chosen().source, chosen().config) == ("shipped", tile(0))
    put(folders / "user", "nvidia_h200", tile(1))
    assert (chosen().source, chosen().config) == ("user", tile(1))


def test_a_simulated_tile_of_another_kernel_source_is_not_used(folders):
    put_simulated(folders / "shipped", "nvidia_h200", tile(1))
    put_simulated(folders / "user", "nvidia_h200", tile(2), kernel_hash="0" * 12)
    assert (chosen().source, chosen().config) == ("simulated", tile(1))
    put_simulated(folders / "shipped", "nvidia_h200", tile(1), kernel_hash="0" * 12)
    assert chosen().source == "model"


def test_a_simulated_tile_serves_half_and_twice_its_batch(folders):
    put_simulated(folders / "shipped", "nvidia_h200", tile(1), batch=32)
    assert [chosen(b).source for b in (8, 16, 32, 64, 65)] == ["model"] + ["simulated"] * 3 + ["model"]


def test_a_tile_serves_neighbouring_batches_only(folders):
    put(folders / "user", "nvidia_h200", tile(1), batch=32)
    assert [chosen(b).source for b in (8, 9, 16, 32, 64, 65, 128)] == ["model"] + ["user"] * 4 + ["model"] * 2
    put(folders / "user", "nvidia_h200", tile(2), batch=64)
    assert [chosen(b).config for b in (16, 32, 33, 64, 128)] == [tile(1), tile(1), tile(2), tile(2), tile(2)]


def test_another_pass_dtype_or_layer_has_tiles_of_its_own(folders):
    put(folders / "user", "nvidia_h200", tile(1))
    assert select(task("input_grad"), H200).source == "model"
    assert select(task(types=("bfloat16", "float32")), H200).source == "model"
    assert select(task(layer=Geometry.make((8, 9), 16, 32, 3, stride=2)), H200).source == "model"


def test_a_measurement_of_another_source_is_stale_but_used(folders):
    put(folders / "user", "nvidia_h200", tile(1))
    assert not chosen().stale
    path = store.file_of(folders / "user", "sm_90", "nvidia_h200", "forward")
    store.merge(path, "", "forward", {key(32): replace(MEASURED, config=tile(1), kernel_hash="0" * 12)})
    assert chosen().stale
    assert chosen().config == tile(1)


def test_a_measured_tile_that_overwrites_an_operand_is_not_used(folders):
    """Such a tile may give right results by chance when it is measured; on other architectures it is always right."""
    mixed = task(types=("bfloat16", "float32"))
    overwrites, sound = TileConfig(1, 1, 64, 64, 64, swap=True), tile(1)
    for folder, config in (("user", overwrites), ("shipped", sound)):
        for name in ("h200", "b200"):
            path = store.file_of(folders / folder, by_name(name).arch_name, by_name(name).folder, "forward")
            store.merge(path, "", "forward", {mixed.key: replace(MEASURED, config=config)})
    assert (select(mixed, H200).source, select(mixed, H200).config) == ("shipped", sound)
    assert (select(mixed, by_name("b200")).source, select(mixed, by_name("b200")).config) == ("user", overwrites)


def test_an_update_has_tiles_of_its_own_in_the_same_order(folders):
    stored = task("weight_grad", types=("bfloat16", "float32"))
    update = replace(stored, update="adamw")
    ranked_tiles = [config for _, config in ranked(update, H200)[:3]]

    def store_tile(folder, device, entry, config):
        path = store.file_of(folders / folder, H200.arch_name, device, "weight_grad")
        entry = replace(entry, config=config, kernel_hash=store.kernel_hash_of(update))
        store.merge(path, device, "weight_grad", {update.key: entry})

    def found(update_task=update):
        return select(update_task, H200).source, select(update_task, H200).config

    assert found() == ("model", ranked_tiles[0])
    store_tile("shipped", "nvidia_h200", SIMULATED, ranked_tiles[1])
    assert found() == ("simulated", ranked_tiles[1])
    store_tile("shipped", "nvidia_h100_80gb_hbm3", MEASURED, ranked_tiles[2])
    assert found() == ("architecture", ranked_tiles[2])
    store_tile("shipped", "nvidia_h200", MEASURED, ranked_tiles[1])
    assert found() == ("shipped", ranked_tiles[1])
    store_tile("user", "nvidia_h200", MEASURED, ranked_tiles[2])
    assert found() == ("user", ranked_tiles[2])
    for other in (stored, replace(update, update="sgd"), replace(update, state_dtype="int8")):
        assert found(other)[0] == "model"
    assert found(replace(update, batch=64)) == ("user", ranked_tiles[2])


def test_a_tile_with_too_many_sums_for_an_update_is_not_used(folders):
    """Tiles of another batch, or written by hand, may have too many sums."""
    update = replace(task("weight_grad", types=("bfloat16", "float32")), update="adamw")
    path = store.file_of(folders / "user", H200.arch_name, H200.folder, "weight_grad")
    for config, source in ((TileConfig(1, 1, 128, 64, 128), "model"), (TileConfig(1, 1, 64, 64, 64), "user")):
        store.merge(path, "", "weight_grad", {update.key: replace(MEASURED, config=config)})
        assert select(update, H200).source == source


def test_a_damaged_file_is_skipped(folders):
    put(folders / "shipped", "nvidia_h200", tile(1))
    path = store.file_of(folders / "user", "sm_90", "nvidia_h200", "forward")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert chosen().source == "shipped"


def test_the_users_folder(monkeypatch, tmp_path):
    def folder(**variables):
        for name in ("LC_TRITON_CONFIG_DIR", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, variables.get(name, ""))
        backend.environment.cache_clear()
        return paths.user_configs()

    assert folder(LC_TRITON_CONFIG_DIR=str(tmp_path)) == tmp_path
    assert folder(XDG_CACHE_HOME=str(tmp_path)) == tmp_path / "lc_triton" / "autotune_configs"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "lc_triton" / "autotune_configs"
    assert folder(XDG_CACHE_HOME="relative") == folder()  # the XDG specification ignores relative paths
    monkeypatch.undo()
    backend.environment.cache_clear()


def test_a_copy_without_platformdirs(monkeypatch, capsys):
    """The library `kernels` loads lc_triton so: the user's tiles are in the folder of the variable, or nowhere."""
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    for value, found in (("", None), ("/tiles", Path("/tiles"))):
        monkeypatch.setenv("LC_TRITON_CONFIG_DIR", value)
        backend.environment.cache_clear()
        assert paths.known_user_configs() == found
    monkeypatch.setenv("LC_TRITON_CONFIG_DIR", "")
    backend.environment.cache_clear()
    assert cli.main(["env"]) == 0
    assert "none: platformdirs is not installed, so LC_TRITON_CONFIG_DIR must name" in capsys.readouterr().out
    monkeypatch.undo()
    backend.environment.cache_clear()


def test_devices_have_folders_of_their_own():
    names = ("a100", "h100", "h200", "b200", "rtx4090", "mi300x")
    folders = [f"{by_name(n).arch_name}/{by_name(n).folder}" for n in names]
    assert folders[2] == "sm_90/nvidia_h200"
    assert folders[5] == "gfx942/amd_instinct_mi300x"
    assert len(set(folders)) == 6


@pytest.mark.parametrize("pass_name", PASSES)
def test_shipped_tiles_have_a_time_and_a_date(pass_name):
    for path in paths.shipped_configs().glob(f"*/*/{pass_name}.json"):
        entries = store.read(path)
        for measured in entries.values():
            assert measured.median_us > 0
            assert measured.date
        for simulated in entries.simulated.values():
            assert simulated.simulated_us > 0
            assert simulated.date
