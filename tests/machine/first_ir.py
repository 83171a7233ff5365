"""Triton's compilation, ended after the first IR, which takes a twentieth of the time."""

from typing import Any

from triton._C.libtriton import ir
from triton.compiler.compiler import make_backend


def compile_to_first_ir(source: Any, target: Any = None, options: Any = None, **_: Any) -> None:
    """Stand in for `triton.compiler.compile`: make the IR of Triton's front end, and compile no further."""
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)
