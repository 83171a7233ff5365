"""The choice of a tile for a launch, and its message to the logger."""

import logging

from lc_triton.core.geometry import Geometry
from lc_triton.tiles import device, paths
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.device import by_name
from lc_triton.tiles.model import choose
from lc_triton.tiles.task import Task


def test_the_debug_logger_names_the_tile_and_its_source(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(device, "of_gpu", lambda index: by_name("h200"))
    for folder in ("shipped_configs", "user_configs"):
        monkeypatch.setattr(paths, folder, lambda: tmp_path)
    task = Task("forward", Geometry.make((8, 8), 4, 8, 3), 2, "float32", "float32")
    assert chooser(task, 0) == choose(task, by_name("h200"))
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "lc_triton.dispatch"):
        config = chooser(task, 0)
    (record,) = caplog.records
    assert record.getMessage() == f"{task}: {config} (model)"
