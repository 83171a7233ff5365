"""The code in the documents runs, and the commands, links and names in them exist."""

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import lc_triton
import lc_triton.keras
import lc_triton.parallel

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Kernels have no examples, and importing them imports triton.
MODULES = [
    m.name
    for m in pkgutil.walk_packages(lc_triton.__path__, "lc_triton.")
    if not m.name.startswith(("lc_triton.kernels", "lc_triton.launch"))
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in lc_triton.__all__ if n not in ("__version__", "LocalConvError")])
def test_every_public_name_is_typed_and_explained(name):
    public = getattr(lc_triton, name)
    text, signature = inspect.getdoc(public), inspect.signature(public)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter.name
        assert re.search(rf"\b{parameter.name}\b", text), f"{parameter.name} is not explained"
    assert isinstance(public, type) or signature.return_annotation is not signature.empty
    assert ">>>" in text
    assert "Source: " in text
    for method, of in inspect.getmembers(public) if isinstance(public, type) else []:
        if not method.startswith("_") and getattr(of, "__module__", "").startswith("lc_triton"):
            assert inspect.getdoc(of), method


def test_the_packages_help_names_everything():
    text = inspect.getdoc(lc_triton).replace("LazyLocalConv1d, ..., LazyLocalConvTranspose3d", "Lazy")
    for name in lc_triton.__all__:
        assert re.search(rf"\b{name}\b", text) or name.startswith(("Lazy", "__")), name


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_in_documents_runs(path, tmp_path, monkeypatch):
    if path.name == "ecosystem.md":
        pytest.skip("its lines need the extra ecosystem: tests/ecosystem runs them where it is installed")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        exec(compile(block, f"{path.name}: {block[:40]!r}", "exec"), names)


OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md")]


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "docs/dev").glob("*.md")), *OTHERS], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_site_shows_every_example():
    """Examples are included as blocks, because the formatter takes a line `--8<-- "FILE"` for an expression."""
    shown = re.findall(r"^--8<--\n(\S+)\n--8<--$", (ROOT / "docs/examples.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py"))


def dry_run(*arguments):
    # Without the variables of a make that runs these tests, such as VENV.
    outer = {"MAKEFLAGS", "MAKEOVERRIDES", "VENV", "CONSTRAINTS"}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", "--dry-run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.subprocess
def test_the_two_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    for target, does in (("demo", "lc-triton demo"), ("test", "pytest")):
        assert f"    make {target} " in readme
        assert does in dry_run(target)
    ci = (ROOT / ".ci" / "run").read_text()
    assert [line for line in ci.splitlines() if line.startswith("make")] == ["make lint", "make types", "make test"]


def test_hooks_check_what_changed_with_the_pinned_tools():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    lint = dry_run("lint") + dry_run("types")
    hooks = [hook.removesuffix(" --force-exclude") for hook in re.findall(r"entry: (.venv/bin/[^#\n]*\S)", text)]
    assert hooks == [".venv/bin/ruff check", ".venv/bin/ruff format --check", ".venv/bin/mypy"]
    assert all(hook in lint for hook in hooks)


WORKFLOW = (ROOT / ".github/workflows/tests.yml").read_text()


def test_the_workflow_calls_targets_that_exist():
    lines = re.findall(r"(?:run: make|make:) ([\w -]+)", WORKFLOW)
    targets = {target for line in lines for target in line.split()} - {"CONSTRAINTS"}
    assert targets == {"lint", "types", "test", "test-oldest", "docs"}
    for target in targets:
        assert dry_run(target)


def test_the_workflow_tests_the_bounds():
    """All versions of Python, and the oldest torch and triton, that pyproject.toml allows."""
    project = (ROOT / "pyproject.toml").read_text()
    versions = re.findall(r'Python :: (3\.\d+)"', project)
    assert f"python: {json.dumps(versions)}" in WORKFLOW
    oldest = (ROOT / ".github/constraints/oldest.txt").read_text()
    for package in ("torch", "triton"):
        (bound,) = re.findall(rf'^    "{package}>=([\d.]+)', project, re.MULTILINE)
        assert f"\n{package}=={bound}.0\n" in oldest
    recipe = dry_run("test-oldest", "--always-make")
    assert re.search(r"\.venv-oldest/bin/python -m pip install .* -c \.github/constraints/oldest\.txt torch\n", recipe)
    assert ".venv-oldest/bin/python -m pytest" in recipe
    assert ".venv/" not in recipe


def test_set_up_installs_torch_by_the_pinned_file_first():
    recipe = (ROOT / "Makefile").read_text()
    first, second = (recipe.index(s) for s in ("-c $(CONSTRAINTS) torch\n", '-c $(CONSTRAINTS) -e ".[all]"'))
    assert "CONSTRAINTS ?= constraints.txt\n" in recipe
    assert first < second


@pytest.mark.subprocess
def test_help_names_every_target():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = dry_run("help")
    for target in set(phony.split()) - {"help", "setup"}:
        assert f"make {target} " in shown, target


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("target", "left_out"),
    [("check", '-m "not slow and not nightly"'), ("test", '-m "not nightly"'), ("nightly", ""), ("coverage", "")],
)
def test_the_interpreter_has_a_process_of_its_own(target, left_out):
    recipe = dry_run(target)
    assert "--ignore=tests/interpreter" in recipe
    assert re.search(r"TRITON_INTERPRET=1 .* tests/interpreter", recipe)
    assert recipe.count(' -m "') == (2 if left_out else 0)
    assert left_out in recipe


@pytest.mark.subprocess
def test_a_check_includes_style_and_types():
    recipe = dry_run("check")
    assert all(command in recipe for command in ("ruff check .", "ruff format --check .", "bin/mypy"))


@pytest.mark.subprocess
def test_the_nightly_fuzz_runs_both_processes():
    recipe = dry_run("fuzz")
    assert re.search(r"LC_TRITON_FUZZ=nightly OMP.* tests/fuzz", recipe)
    assert re.search(r"LC_TRITON_FUZZ=nightly TRITON_INTERPRET=1 .* tests/interpreter/test_fuzz.py", recipe)


def public_names():
    """Every name that docs/api explains: of the package, and of its public modules."""
    modules = {"lc_triton": lc_triton, "lc_triton.keras": lc_triton.keras, "lc_triton.parallel": lc_triton.parallel}
    names = {f"{path}.{name}" for path, module in modules.items() for name in module.__all__}
    names |= {f"lc_triton.keras.layers.LocallyConnected{n}D" for n in (1, 2, 3)}  # importing them needs an extra
    return names - {"lc_triton.__version__"}


def test_every_public_name_is_on_one_api_page():
    pages = (ROOT / "docs" / "api").glob("*.md")
    found = [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert len(found) == len(set(found))
    modules = {
        f"lc_triton.{name}" for name in ("layers.init", "errors", *(f"keras.{kind}" for kind in KERAS_ARGUMENTS))
    }
    assert set(found) - public_names() == modules  # the public names of each module
    assert public_names() <= set(found)


KERAS_ARGUMENTS = ("initializers", "regularizers", "constraints")


@pytest.mark.parametrize("kind", KERAS_ARGUMENTS)
def test_every_keras_object_is_on_the_api_page(kind):
    module = importlib.import_module(f"lc_triton.keras.{kind}")
    base = {"initializers": "Initializer", "regularizers": "Penalised", "constraints": "Constraint"}[kind]
    classes = {name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")}
    own = {name for name in classes if vars(module)[name].__module__ == module.__name__} - {base, "Constrained"}
    page = (ROOT / "docs/api/keras-arguments.md").read_text()
    (listed,) = re.findall(rf"::: lc_triton.keras.{kind}\n.*?members: \[([^]]+)\]", page, re.DOTALL)
    assert set(listed.split(", ")) == own


def test_every_page_is_in_the_navigation():
    """`make docs` says the same of the built site; here it is known without mkdocs."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:\n")[2]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    named = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert all(page in pages for page in named if page.startswith("dev/"))
    above = set(re.findall(r'"(\w+\.md)",$', (ROOT / "docs/_site/pages.py").read_text(), re.MULTILINE))
    assert len(above) == 5
    built = {page for page in pages if not page.startswith(("notebooks/", "dev/"))}
    assert {page for page in named if not page.startswith("dev/")} == built | above | {"notebooks/first_layer.md"}
