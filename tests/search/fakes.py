"""A stand-in for the bench that times tiles, for tests of the search."""

from lc_triton.core.geometry import Geometry
from lc_triton.search.strategy import Disagreement
from lc_triton.tiles import store
from lc_triton.tiles.device import by_name
from lc_triton.tiles.task import Task

H200 = by_name("h200")
LAYER = Geometry.make((20, 20), 16, 16, 3)


def task(pass_name="forward", batch=32, layer=LAYER):
    return Task(pass_name, layer, batch, "bfloat16", "bfloat16")


def file_of(folder):
    """The file of a pass in a folder of tiles."""
    return lambda pass_name: store.file_of(folder, H200.arch_name, H200.folder, pass_name)


class Clock:
    """A clock that advances only when a bench works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeBench:
    """Returns for each tile the time that a function gives; if it gives a string, the tile fails with this message."""

    def __init__(self, us, clock=None, compile_seconds=0.0, trial_seconds=1.0):
        self.us, self.clock = us, clock or Clock()
        self.compile_seconds, self.trial_seconds = compile_seconds, trial_seconds
        self.compiled, self.timed = [], []

    def compile(self, configs):
        self.compiled += configs
        self.clock.now += self.compile_seconds

    def check(self, config):
        us = self.us(config)
        if us == "wrong":
            raise Disagreement("y is off by 1")
        if isinstance(us, str):
            raise RuntimeError(us)

    def time(self, configs, rounds):
        assert set(configs) <= set(self.compiled)
        self.timed.append(tuple(configs))
        self.clock.now += self.trial_seconds * len(configs)
        return [[self.us(config) * (1 + 0.01 * (i % 3)) for i in range(rounds)] for config in configs]
