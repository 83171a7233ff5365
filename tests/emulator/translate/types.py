"""The types of PTX: what numpy calls them, and their bytes. bfloat16 numbers are computed as float32."""

from __future__ import annotations

NUMPY_TYPES = {
    "u8": ("u1", 1), "s8": ("i1", 1), "b8": ("u1", 1),
    "u16": ("u2", 2), "s16": ("i2", 2), "b16": ("u2", 2), "f16": ("f2", 2), "bf16": ("bf", 2),
    "u32": ("u4", 4), "s32": ("i4", 4), "b32": ("u4", 4), "f32": ("f4", 4), "f16x2": ("u4", 4), "bf16x2": ("u4", 4),
    "tf32": ("f4", 4), "u64": ("u8", 8), "s64": ("i8", 8), "b64": ("u8", 8), "f64": ("f8", 8), "pred": ("b", 0),
}  # fmt: skip
# Bytes of a register; predicates are arrays of bool.
REGISTER_BYTES = {
    "pred": 0, "b16": 2, "s16": 2, "u16": 2, "f16": 2, "b32": 4, "s32": 4, "u32": 4, "f32": 4, "b64": 8, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
FLOATS = ("f16", "bf16", "f32", "f64")
