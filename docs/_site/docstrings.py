"""Docstrings as mkdocstrings reads them: it knows `Examples:`, which these files call `Example:`."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rename the section as each object is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
