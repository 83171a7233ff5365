"""The choice of tiles for layers whose positions share filters."""

import json
import math
from dataclasses import replace

import pytest

from lc_triton.core.geometry import Geometry
from lc_triton.core.share import parse_share
from lc_triton.errors import LocalConvError, WorkloadError
from lc_triton.tiles import workloads
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.footprint import loop_steps, programs
from lc_triton.tiles.key import ProblemKey
from lc_triton.tiles.limits import fits_regions
from lc_triton.tiles.model import choose, fuses_activation_grad, predict, roofline_terms
from lc_triton.tiles.space import candidates, variants
from lc_triton.tiles.task import Task
from tests.shared_cases import SHARED

ROWS = Geometry.make((32, 32), 64, 64, 3, regions=parse_share("rows", 2))


def task(pass_name, geometry=ROWS, batch=64):
    return Task(pass_name, geometry, batch, "bfloat16", "bfloat16")


@pytest.mark.parametrize("case", SHARED, ids=lambda c: c.name)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_weight_gradients_programs_own_filters_of_one_region(case, batch):
    geo, t = case.geometry, task("weight_grad", case.geometry, batch)
    found = candidates(t, DEVICES["h100"])
    assert found
    assert all(fits_regions(config) for config in found)
    config = choose(t, DEVICES["h100"])
    assert predict(t, DEVICES["h100"], config) > 0
    blocks = -(-geo.out_channels // geo.groups // config.block_f) * geo.groups
    chunks = -(-geo.window // config.block_k)
    assert programs("weight_grad", t.geo, batch, config) == geo.filter_sets * blocks * chunks * config.split
    rows = batch * math.prod(geo.region_sizes)
    assert loop_steps("weight_grad", t.geo, batch, config) == -(-rows // config.block_b)
    assert not fuses_activation_grad(t, DEVICES["h100"], config)
    assert all(fits_regions(other) for other in variants(t, DEVICES["h100"], config))


def test_loops_over_few_regions_are_split_to_fill_the_device():
    one = replace(ROWS, regions=parse_share("all", 2))
    t = task("weight_grad", one)
    config = choose(t, DEVICES["h200"])
    assert config.split > 1
    assert programs("weight_grad", t.geo, 64, config) > DEVICES["h200"].multiprocessors / 2


@pytest.mark.parametrize("pass_name", PASSES)
def test_memory_traffic_is_by_region_and_l2_traffic_by_position(pass_name):
    t, unshared_task = task(pass_name), task(pass_name, replace(ROWS, regions=()))
    config = TileConfig(1, 1, 64, 64, 64)
    terms, unshared = (roofline_terms(task_, DEVICES["h200"], config) for task_ in (t, unshared_task))
    weight = ROWS.window * 64 * 2
    assert unshared.memory_bytes - terms.memory_bytes == (900 - 30) * weight
    if pass_name != "weight_grad":
        assert terms.l2_bytes == unshared.l2_bytes
    assert terms.operations == unshared.operations
    assert t.flops == unshared_task.flops


def test_keys_of_shared_filters_differ_from_others():
    shared, unshared = task("forward").key, task("forward", replace(ROWS, regions=())).key
    assert shared != unshared
    for key in (shared, unshared):
        assert ProblemKey.from_json(json.loads(json.dumps(key.to_json()))) == key
    assert shared.to_json()["regions"] == [[1, 1], [1, 1], [1, 30], [1, 1]]
    assert "regions" not in unshared.to_json()  # a key without regions is that of older versions
    for wrong in ([[1, 1]], [[1, 0]] * 4, [[1]] * 4, "rows", [1, 2, 3, 4]):
        with pytest.raises(LocalConvError):
            ProblemKey.from_json(shared.to_json() | {"regions": wrong})


def test_a_task_is_written_and_read_as_json():
    t = task("weight_grad")
    assert Task.from_json(json.loads(json.dumps(t.to_json()))) == t


def test_workloads_name_shared_filters(tmp_path):
    path = tmp_path / "layers.json"
    entry = {"name": "a", "input": [8, 8, 3], "kernel": [3, 3], "filters": 4, "batches": [1], "share": ["tile", 2, 3]}
    path.write_text(json.dumps({"workloads": [entry]}))
    assert workloads.read(path)["a"].geometry.weight_shape == (2, 3, 3, 3, 3, 4)
    path.write_text('{"workloads": [\n' + json.dumps(entry | {"share": "row"}).replace('"share"', '\n"share"') + "]}")
    with pytest.raises(WorkloadError, match=r"line 3.*did you mean 'rows'"):
        workloads.read(path)
