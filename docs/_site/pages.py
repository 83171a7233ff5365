"""Pages of the site whose files lie above docs/: README.md is its landing page."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, with links that hold inside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = re.sub(r"\]\(([^):#]+)", lambda link: f"]({_inside(link.group(1))}", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links from a page of docs/ to one of these files, or to an example, into links to pages."""
    return re.sub(r"\]\(\.\./([^):#]+)", lambda link: f"]({_inside(link.group(1), '../')}", markdown)


def _inside(path: str, otherwise: str = "") -> str:
    """The address in docs/ of a file that is named from the repository's root."""
    if path.startswith("examples/"):
        return "examples.md"
    return PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else otherwise + path)
