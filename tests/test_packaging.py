"""The contents of the wheel, the sdist and an editable install, and the metadata."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import lc_triton
from lc_triton import errors

ROOT = Path(__file__).parents[1]

PRINT_PATHS = """
import lc_triton
from lc_triton.tiles.paths import shipped_configs
print(lc_triton.__file__)
print(shipped_configs())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
    ]
    subprocess.run(build, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    info = f"lc_triton-{lc_triton.__version__}.dist-info"
    return message_from_string(zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode())


def requirements(metadata, extra):
    """The names of the packages that an extra, or with None the package itself, requires."""
    found = set()
    for line in metadata.get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        if (f"extra == '{extra}'" in marker) if extra else ("extra ==" not in marker):
            found.add(re.match(r"[\w.\[\],-]+", requirement).group())
    return found


def imported_paths(folder, cwd):
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{PRINT_PATHS}"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_wheel_is_pure_and_complete(wheel):
    assert wheel.name == f"lc_triton-{lc_triton.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lc_triton").rglob("*.py")} | {
        "lc_triton/py.typed",
        "lc_triton/workloads.json",
    }
    assert ours <= set(names)
    assert {n.split("/")[0] for n in names} == {"lc_triton", f"lc_triton-{lc_triton.__version__}.dist-info"}
    configs = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "lc_triton" / "autotune_configs").rglob("*") if p.is_file()
    }
    assert configs
    assert configs <= set(names)


@pytest.mark.subprocess
@pytest.mark.slow
def test_configurations_are_found_from_the_wheel(wheel, tmp_path):
    site = wheel.parent / "site"
    module, configs = imported_paths(site, tmp_path)
    assert module == site / "lc_triton" / "__init__.py"
    assert configs == site / "lc_triton" / "autotune_configs"


@pytest.mark.subprocess
@pytest.mark.slow
def test_an_editable_install_is_only_a_link(tmp_path):
    """A copied file of the package would still be found after the checkout was moved."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", tmp_path / "site", "--editable", ROOT], check=True)
    assert not (tmp_path / "site" / "lc_triton").exists()
    (link,) = (tmp_path / "site").glob("*.pth")
    module, configs = imported_paths(link.read_text().strip(), tmp_path)
    assert module == ROOT / "lc_triton" / "__init__.py"
    assert configs == ROOT / "lc_triton" / "autotune_configs"


@pytest.mark.subprocess
@pytest.mark.slow
def test_files_are_found_beside_a_moved_package(tmp_path):
    shutil.copytree(ROOT / "lc_triton", tmp_path / "moved" / "lc_triton", ignore=shutil.ignore_patterns("__pycache__"))
    module, configs = imported_paths(tmp_path / "moved", tmp_path)
    assert module == tmp_path / "moved" / "lc_triton" / "__init__.py"
    assert configs == tmp_path / "moved" / "lc_triton" / "autotune_configs"
    assert configs.is_dir()


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_sdist_gives_the_same_wheel(wheel, tmp_path):
    """The sdist also has the files that its tests and documents need."""
    build = "import sys; from hatchling import build; print(build.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    for name in ("tests/test_packaging.py", "docs/tuning.md", "benchmarks/__main__.py", "constraints.txt", "Makefile"):
        assert (folder / name).is_file()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, tmp_path, folder], check=True)
    (built,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(built).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_hints_name_extras_that_install_the_package(metadata):
    """Read each MissingPackageError in the source of the library."""
    found = 0
    for path in sorted((ROOT / "lc_triton").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "MissingPackageError":
                keywords = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
                assert keywords["extra"] in metadata.get_all("Provides-Extra"), f"{path}:{call.lineno}"
                package = keywords["package"]  # None: hdf5.py passes a variable
                required = requirements(metadata, keywords["extra"])
                assert package is None or package.split()[0] in required, f"{path}:{call.lineno}"
                found += 1
    assert found >= 5
    assert {"h5py", "pydantic"} <= requirements(metadata, "keras")  # the packages that hdf5.py names


@pytest.mark.slow
def test_metadata(wheel, metadata):
    assert metadata["Name"] == "lc-triton"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    assert requirements(metadata, None) == {"torch", "triton", "numpy", "filelock", "platformdirs", "tqdm"}
    assert "triton<3.10,>=3.6; sys_platform == 'linux'" in metadata.get_all("Requires-Dist")
    assert set(metadata.get_all("Provides-Extra")) == {
        *("all", "bench", "cli", "demo", "dev", "docs", "ecosystem", "keras", "keras3", "onnx")
    }
    parts = [requirements(metadata, extra) for extra in ("demo", "keras", "dev")]
    assert all(parts)
    assert requirements(metadata, "all") == set.union(*parts)
    assert {"onnx", "onnxruntime", "onnxscript"} == requirements(metadata, "onnx") <= requirements(metadata, "dev")
    assert {"shtab"} == requirements(metadata, "cli") <= requirements(metadata, "dev")
    assert {"keras"} == requirements(metadata, "keras3") <= requirements(metadata, "dev")
    assert not requirements(metadata, "all") & {"tensorflow", "tf-keras", "jax", "flax", "mkdocs", "nbconvert"}
    assert "peft" in requirements(metadata, "ecosystem")
    assert not requirements(metadata, "all") & requirements(metadata, "ecosystem")
    points = zipfile.ZipFile(wheel).read(f"lc_triton-{lc_triton.__version__}.dist-info/entry_points.txt").decode()
    assert "lc-triton = lc_triton.cli:main" in points


def test_the_package_page_links_to_pages_that_exist_there(metadata):
    """The page is the README; its links must be absolute once the metadata names a source repository."""
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls["Homepage"] == "https://pypi.org/project/lc-triton/"
    page = metadata.get_payload()
    assert page == (ROOT / "README.md").read_text()
    if "Source" in urls:
        assert not re.findall(r"\]\((?!https://)[^)]+\)", page)


def test_the_citation_has_the_packages_version(metadata):
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [metadata["Version"]]
    assert re.findall(r"^license: (.+)$", text, re.MULTILINE) == [metadata["License-Expression"]]


def test_every_dependency_is_pinned_for_the_tests(metadata):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    for extra in (None, "cli", "demo", "docs", "ecosystem", "keras", "keras3", "onnx", "dev"):
        assert requirements(metadata, extra) <= pinned
    assert {"torch==2.13.0", "triton==3.7.1"} <= set(lines)


@pytest.mark.subprocess
@pytest.mark.slow
def test_builds_of_the_wheel_are_reproducible(wheel, tmp_path):
    """The wheel has the same bytes from files of another time, folder and permissions, and in another locale."""
    copy = tmp_path / "elsewhere" / "project"
    shutil.copytree(ROOT / "lc_triton", copy / "lc_triton")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode ^ 0o020)  # as with another umask
        os.utime(path, (1_600_000_000, 1_600_000_000))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"} | {
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
    }
    subprocess.run([*build, tmp_path, copy], check=True, env=environment)
    (rebuilt,) = tmp_path.glob("*.whl")
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, rebuilt))
    assert first == second


def test_every_bound_is_justified(metadata):
    """CONTRIBUTING.md has one line for each dependency, with the bound of pyproject.toml."""
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("_", "-")
    rows = set(re.findall(r"^\| ([\w-]+>=[\d.,<]+) \|", text, re.MULTILINE))
    lines = [line.replace("_", "-") for line in metadata.get_all("Requires-Dist")]
    found = [re.match(r"([\w-]+)([<>][\d.,<>=]+)", line) for line in lines]
    assert rows == {f"{b[1]}{','.join(sorted(b[2].split(','), reverse=True))}" for b in found if b}
    assert f'"{next(row for row in rows if row.startswith("triton"))}"' in str(errors.MissingTritonError.of("it"))
    assert f"| Python {metadata['Requires-Python']} |" in text
