"""A hook of MkDocs: files outside of docs/ become part of the site, and links to them lead there.

In the repository every page links to files by their real paths, so that links work wherever the repository is browsed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Paths in the repository, and in the site.
MOUNTED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
    "kernels/README.md": "kernels.md",
    "train/README.md": "training-code.md",
    "export/README.md": "export-code.md",
    "dmfnet_fast/weights/MODEL_CARD.md": "model-card.md",
    "dmfnet_fast/weights/phantoms.png": "phantoms.png",
} | {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in (ROOT / "benchmarks" / "results").iterdir()}
LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is mounted."""
    for path, place in MOUNTED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links between files of the repository to their places in the site, where all pages are in one folder."""
    places = {place: path for path, place in MOUNTED.items()}
    here = posixpath.dirname(places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, link[2]))
        place = MOUNTED.get(path, path.removeprefix("docs/"))
        return f"{link[1]}{place}{link[3] or ''}{link[4]}"

    return LINK.sub(moved, markdown)
