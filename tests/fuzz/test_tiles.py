"""As test_constructors, for tiles, workload files and a layer's shape written as one word."""

import dataclasses
import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lc_triton.tiles import workloads
from lc_triton.tiles.config import TileConfig
from tests.fuzz import parse, wrong_values
from tests.fuzz.outcomes import Outcome
from tests.fuzz.profiles import cases


@cases("tiles")
@given(st.booleans(), st.data())
def test_tiles(as_json, data):
    valid = {f.name: f.default for f in dataclasses.fields(TileConfig)}
    arguments, wrong, _ = data.draw(wrong_values.replace_some(valid))
    if as_json:
        outcome = Outcome(TileConfig.from_json, {"value": arguments}, wrong)
    else:
        outcome = Outcome(TileConfig, arguments, wrong)
    if outcome.refused:
        return
    for name, value in arguments.items():
        field = getattr(outcome.result, name)
        if isinstance(valid[name], bool):
            assert field is parse.boolean(value)
        else:
            assert (field, type(field)) == (parse.integer(value), int)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.sampled_from([2**31, 2**70, 1e300, 1.0, "same", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "input", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@cases("workload_files")
@given(st.data())
def test_workload_files(data):
    entry = {"name": "layer", "input": [5, 4, 2], "kernel": [3, 3], "filters": 4, "batches": [1, 2], "stride": 1}
    entry |= {"padding": 1, "dilation": 1, "groups": 2, "source": "here"}
    for name in data.draw(st.lists(st.sampled_from([*entry, "other"]), max_size=2, unique=True)):
        entry[name] = data.draw(JSON)
    content = {"workloads": [entry]}
    if data.draw(st.integers(0, 4)) == 4:
        content = data.draw(JSON)
    text = json.dumps(content)
    if data.draw(st.integers(0, 4)) == 4:
        cut = data.draw(st.integers(0, len(text)))
        text = (
            text[:cut]
            + data.draw(st.sampled_from(["", "]", '"', "\udcff", "[" * 100_000, "9" * 5000]))
            + text[cut + 1 :]
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workloads.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        outcome = Outcome(workloads.read, {}, {"text"}, path)
    for workload in [] if outcome.refused else outcome.result.values():
        assert workload.geometry.weight_shape
        assert all(type(batch) is int and batch >= 1 for batch in workload.batches)


WORDS = st.sampled_from(
    ["k3", "f4", "k3x2", "s2", "p1", "d2", "g2", "k", "f0", "k-1", "z3", "", "f2x2", "k9999999999999", "s1_0", "k٣"]
)


@cases("shapes")
@given(
    st.sampled_from(["9x8x2", "9x2", "5x5x5x2", "", "9", "x", "-9x2", "1e3x2", "9x8x2x2x2"]),
    st.lists(WORDS, max_size=4),
)
def test_shapes_as_one_word(first, words):
    text = ",".join([first, *words])
    outcome = Outcome(lambda: workloads.parse_shape(text, [3]), {}, {"text"})
    if not outcome.refused:
        assert outcome.result.batches == (3,)
        assert outcome.result.geometry.in_channels == 2
