"""Imports run one way, and importing costs nothing."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lc_triton

PACKAGE = Path(lc_triton.__file__).parent

# A module may import from its own row or a later one. A new module goes into the row it belongs to.
ROWS = [
    ["__main__"],
    ["cli", "cli.__main__"],
    ["cli.demo", "cli.tune", "cli.fit", "cli.precompile", "cli.inspect", "cli.configs", "cli.convert", "cli.env"],
    ["cli.completion"],
    ["cli.options"],
    ["demo", "demo.*"],
    [""],
    ["parallel", "parallel.*"],
    ["layers.conversion", "ahead", "ahead.*", "keras", "keras.layers", "keras.saved", "keras.saved.*"],
    ["search", "search.*"],
    ["optim", "optim.*"],
    ["layers", "layers.*"],
    ["functional"],
    ["ops", "ops.run", "ops.linear", "ops.low_rank", "ops.gather_passes", "ops.quantized"],
    ["ops.operator_autograd"],
    ["ops.node"],
    ["ops.autograd"],
    ["ops.decompositions"],
    ["ops.operators"],
    ["ops.sharding"],
    ["ops.bound"],
    ["ops.dispatch", "ops.vmap", "ops.checks", "ops.position_penalty", "ops.gather"],
    ["ops.plan"],
    ["simulator", "simulator.*"],
    ["launch", "launch.*", "_cpu", "_cpu.*", "ops.reference"],
    ["tiles", "tiles.*", "kernels", "kernels.*"],
    ["keras.activations", "keras.constraints", "keras.initializers", "keras.regularizers"],
    ["keras.penalty", "keras.folding"],
    ["keras.layout", "keras.registry"],
    ["layers.sharing"],
    [
        "core",
        "core.batched_gradients",
        "core.tracing",
        "core.problem",
        "core.backend",
        "core.memory_format",
        "core.parameters",
        "core.storage",
        "core.dtypes",
    ],
    ["core.activations", "core.padding_mode", "core.share", "core.fused", "core.ranges"],
    ["core.geometry"],
    ["core.padding"],
    ["core.arguments"],
    ["core.names"],
    ["errors", "core.files", "_version", "_command"],
]

# Modules that time and check kernels are imported only by a search.
TIMING = ("search.scratch", "search.accuracy", "search.bench", "search.updating")


def row(module):
    parts = module.split(".")
    names = {module} | {".".join(parts[:i]) + ".*" for i in range(1, len(parts))}
    for i, members in enumerate(ROWS):
        if names & set(members):
            return i
    pytest.fail(f"lc_triton.{module} is in no row: add it to the table in {Path(__file__).name}")


@cache
def modules():
    """(name, path) of each."""
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


@cache
def imports(path):
    """(module of ours, whether at module level, line) for each import in a file."""
    tree = ast.parse(path.read_text())
    top, lines = {id(n) for n in tree.body}, []
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lc_triton":
            inner = node.module.removeprefix("lc_triton").removeprefix(".")
            known = {m for m, _ in modules()}
            found = [
                f"{inner}.{a.name}".lstrip(".") if f"{inner}.{a.name}".lstrip(".") in known else inner
                for a in node.names
            ]
        elif isinstance(node, ast.Import):
            found = [a.name for a in node.names if a.name.split(".")[0] in ("lc_triton", "triton")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "triton":
            found = [node.module]
        lines += [(name, id(node) in top, node.lineno) for name in found]
    return lines


def test_imports_run_one_way():
    wrong = []
    for module, path in modules():
        for name, _, line in imports(path):
            if name.startswith("triton"):
                continue
            if row(name) < row(module):
                wrong.append(f"{module}:{line} imports {name}, which lies above it")
            if module.startswith("kernels.") and name not in (
                "kernels.blocks",
                "kernels.common",
                "kernels.weight_block",
                "kernels.update",
            ):
                wrong.append(f"{module}:{line} imports {name}: kernels import nothing of ours but what they share")
    assert not wrong, "\n".join(wrong)


def test_the_definition_and_triton_are_imported_when_they_are_used():
    wrong = []
    for module, path in modules():
        for name, top, line in imports(path):
            if name == "ops.reference" and (top or module != "ops.run") and module not in TIMING:
                wrong.append(f"{module}:{line} imports the definition")
            if name in TIMING and top and module not in TIMING:
                wrong.append(f"{module}:{line} imports {name} before anyone tunes")
            if (
                (name.startswith(("triton", "kernels", "launch")))
                and top
                and not module.startswith(("kernels", "launch"))
                and module not in TIMING
            ):
                wrong.append(f"{module}:{line} imports {name} before the first Triton call")
    assert not wrong, "\n".join(wrong)


def test_tests_do_without_the_benchmarks():
    """The benchmarks need peers that a developer need not install; their tests are in tests/benchmarks."""
    root, wrong = Path(__file__).parent, []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "benchmarks" in {name.split(".")[0] for name in names} and root / "benchmarks" not in path.parents:
                wrong.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not wrong, wrong


WATCH = """
import sys, torch
opened = []
before = set(sys.modules)
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import lc_triton
files = [f for f in opened if not f.endswith((".py", ".pyc"))]
new = {m.partition(".")[0] for m in set(sys.modules) - before}
print("triton" in sys.modules, torch.cuda.is_initialized(), files, sorted(new - sys.stdlib_module_names))
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_importing_is_light():
    """No file is read, no GPU is asked, and nothing is imported beside this library."""
    run = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False False [] ['lc_triton']"


def test_public_names_exist_and_are_documented():
    for name in lc_triton.__all__:
        assert name == "__version__" or getattr(lc_triton, name).__doc__
    assert list(lc_triton.__all__) == sorted(lc_triton.__all__)


def test_imports_have_no_cycle():
    """Imports inside functions count as well."""
    graph = {
        module: {name for name, _, _ in imports(path) if not name.startswith("triton")} - {module}
        for module, path in modules()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle
