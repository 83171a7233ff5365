"""The names under which newer files keep layers: their classes, numbered."""

from __future__ import annotations

import re


def snake_case(class_name: str) -> str:
    """The name Keras files a class under: LocallyConnected2D under locally_connected2d."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()


def numbered(class_names: list[str]) -> list[str]:
    """The names of layers in files that know them by class: conv2d, conv2d_1, dense, ..."""
    count: dict[str, int] = {}
    found = []
    for name in map(snake_case, class_names):
        found.append(f"{name}_{count[name]}" if name in count else name)
        count[name] = count.get(name, 0) + 1
    return found
