"""Write this library in the layout of Hugging Face's `kernels`, from the files here.

    python tools/hub_kernel.py hub_kernel
    python -c 'import kernels, pathlib; print(kernels.get_local_kernel(pathlib.Path("hub_kernel")).LocalConv2d)'

The layout asks that a program can load two versions side by side: imports are relative, since `kernels` loads the
package under a name of its own, and the operators have a namespace that no other version has, made from the sources'
hash. The command line and the demonstration stay out. Nothing is compiled: Triton does that at the first call.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lc_triton"
LEFT_OUT = ("cli", "demo", "__main__.py")
NAME = "lc-triton"
BACKENDS = ("cpu", "cuda", "rocm")  # a variant of the layout each, for any torch: it is Python alone


def build(out: Path) -> list[Path]:
    """Write the layout into a folder, and return those of its variants.

    Raises:
        FileExistsError: the folder holds something else.
    """
    variants = [out / "build" / f"torch-{backend}" for backend in BACKENDS]
    if out.exists() and any(out.iterdir()) and not any((v / "metadata.json").is_file() for v in variants):
        raise FileExistsError(f"{out} is no folder of an earlier build, and not empty")
    sources = sorted(path for path in PACKAGE.rglob("*") if _is_part(path.relative_to(PACKAGE)) and path.is_file())
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    version = re.findall(r'__version__ = "(.+)"', (PACKAGE / "_version.py").read_text())[0]
    for backend, variant in zip(BACKENDS, variants, strict=True):
        namespace = f"_lc_triton_{backend}_{digest.hexdigest()[:10]}"
        shutil.rmtree(variant, ignore_errors=True)
        for path in sources:
            place = variant / path.relative_to(PACKAGE)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                place.write_text(rewrite(path.read_text(), len(path.relative_to(PACKAGE).parts) - 1, namespace))
            else:
                shutil.copy(path, place)
        metadata = {
            "id": namespace,
            "name": NAME,
            "version": int(version.split(".")[0]),
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    (out / "README.md").write_text(f"---\nlicense: apache-2.0\ntags: [kernels]\n---\n\nlc_triton {version}.\n")
    return variants


def rewrite(text: str, depth: int, namespace: str) -> str:
    """A module with relative imports and its own namespace of operators.

    Args:
        text: its source.
        depth: how many packages it lies in, below this one.
        namespace: of the operators.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lc_triton":
            line, start = lines[node.lineno - 1], len("from ")
            head, tail = line[: node.col_offset + start], line[node.col_offset + start :]
            assert node.module is not None
            inner = node.module.removeprefix("lc_triton").removeprefix(".")
            lines[node.lineno - 1] = head + "." * (depth + 1) + inner + tail.removeprefix(node.module)
        elif isinstance(node, ast.Import) and any(a.name.split(".")[0] == "lc_triton" for a in node.names):
            raise ValueError(f"line {node.lineno}: an import of lc_triton by its name cannot be made relative")
    text = "".join(lines)
    text = re.sub(r"torch\.ops\.lc_triton\b", f"torch.ops.{namespace}", text)
    return text.replace('"lc_triton::', f'"{namespace}::')


def _is_part(path: Path) -> bool:
    return path.parts[0] not in LEFT_OUT and "__pycache__" not in path.parts


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Write lc_triton in the layout of Hugging Face's kernels.")
    parser.add_argument("out", type=Path, metavar="DIR")
    print("\n".join(f"Written: {variant}" for variant in build(parser.parse_args().out)))


if __name__ == "__main__":
    main()
