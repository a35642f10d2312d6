"""The documents: their examples run, their links lead somewhere, their names exist, and the site builds."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from dmfnet_fast import __version__
from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import MODALITIES, make_phantom

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "kernels/README.md"))]
LINKING += [ROOT / "train" / "README.md", ROOT / "dmfnet_fast" / "weights" / "MODEL_CARD.md"]

# Why an example is not run here.
REASONS = {
    "needs a GPU",
    "needs TensorRT",
    "needs the network",
    "needs npm or an installed wheel",
    "opens a browser",
    "needs Ray",
    "needs the published checkpoints",
    "takes minutes",
    "takes hours",
}
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^()\s]+)\)")
OURS = {script.name: script for script in entry_points(group="console_scripts") if script.name.startswith("dmfnet-")}


@dataclass(frozen=True)
class Block:
    """An example; `reason` says why it is not run."""

    kind: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(one["kind"], one["text"], one["reason"]) for one in found if one["kind"] in ("sh", "python")]


def prose(page: Path) -> str:
    """A page without its examples."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def users_files(folder: Path) -> None:
    """Phantoms under the names that the examples give to the user's files."""
    heads = [make_phantom(seed, size=64) for seed in range(2)]
    write_image(folder / "mri.png", heads[0].mri)
    write_image(folder / "pet.png", heads[0].pet)
    write_image(folder / "ct16.png", heads[0].ct.astype(np.uint16) * 16)
    for name in ("MRI", "PET"):
        (folder / name).mkdir()
    for number, head in enumerate(heads):
        write_image(folder / "MRI" / f"{number}.png", head.mri)
        write_image(folder / "PET" / f"{number}.png", head.pet)
    list(write_phantoms(folder / "data", train=2, test=1, size=64))
    for modality in MODALITIES:
        (folder / "theirs" / f"{modality}-MRI").mkdir(parents=True)
        source = folder / "data" / "test" / f"{modality}-MRI" / modality / "001.png"
        shutil.copy(source, folder / "theirs" / f"{modality}-MRI")


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of ours in this process, which has loaded PyTorch already."""
    code: int | str | None = 0
    try:
        if words[0] in OURS:
            monkeypatch.setattr(sys, "argv", words)
            OURS[words[0]].load()()
        elif words[:2] == ["python", "-m"]:
            monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__")
        else:
            pytest.fail(f"{words[0]} is no command of ours: say before the block why it is not run")
    except SystemExit as left:
        code = left.code
    assert not code, f"{shlex.join(words)}: exit code {code}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(not b.reason for b in blocks(page))], ids=relative)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In reading order, in one folder, with one set of Python variables for the page."""
    users_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    for block in blocks(page):
        if block.reason:
            continue
        if block.kind == "python":
            exec(compile(block.text, relative(page), "exec"), variables)
            continue
        for words in block.commands:
            run_command(words, monkeypatch)


def test_reasons_not_to_run() -> None:
    marked = {
        (relative(page), reason) for page in PAGES for reason in re.findall("<!-- not run: (.*?) -->", page.read_text())
    }
    assert {reason for _, reason in marked} <= REASONS
    for page in PAGES:
        used = sum(block.reason is not None for block in blocks(page))
        assert used == page.read_text(encoding="utf-8").count("<!-- not run"), f"{page}: a mark without its block"


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The command of ours that a line runs, with its arguments."""
    if words[0] in OURS:
        name = words[0].removeprefix("dmfnet-")
        # The installed command dmfnet-export only finds and runs this one.
        module = "export.command" if name == "export" else f"dmfnet_fast.commands.{name}"
        rest = words[1:]
    elif "-m" in words and words[words.index("-m") + 1].split(".")[0] in ("train", "benchmarks"):
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    else:
        return None
    # Importing the package's __main__ would run the command at once.
    main = importlib.import_module("benchmarks.gpu.run" if module == "benchmarks.gpu" else module).main
    assert isinstance(main, click.Command)
    return main, rest


def test_options_of_examples_that_are_not_run() -> None:
    checked = 0
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for block in blocks(page):
            if block.reason is None or block.kind != "sh":
                continue
            for words in block.commands:
                if words[0] == "make":
                    assert {word for word in words[1:] if "=" not in word} <= targets, shlex.join(words)
                found = command_of(words)
                if found is None:
                    continue
                command, arguments = found
                known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
                asked = {word.partition("=")[0] for word in arguments if word.startswith("-")}
                assert asked <= known, f"{relative(page)}: {shlex.join(words)}: {asked - known}"
                checked += 1
    assert checked > 10


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as repository hosts and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", LINKING, ids=relative)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{relative(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{relative(page)}: {link}"


def test_paths_in_the_documents_exist() -> None:
    named = re.compile(r"`((?:dmfnet_fast|kernels|export|train|benchmarks|tests|docs)/[\w./-]*)`")
    found = [(page, path) for page in PAGES for path in named.findall(prose(page))]
    assert len(found) > 50
    missing = {f"{relative(page)}: {path}" for page, path in found if not (ROOT / path).exists()}
    assert not missing


def tour_rows() -> list[tuple[Path, str]]:
    found = []
    for file, names in re.findall(r"^\| `([\w/]+\.py)` \| ([^|]+) \|", (ROOT / "docs" / "tour.md").read_text(), re.M):
        found += [(ROOT / file, name) for name in re.findall(r"`(\w+)`", names)]
    return found


@pytest.mark.parametrize(("file", "name"), tour_rows(), ids=lambda value: getattr(value, "stem", value))
def test_names_of_the_tour_are_defined_where_it_says(file: Path, name: str) -> None:
    assert re.search(rf"^\s*(?:def|class) {name}\b", file.read_text(encoding="utf-8"), re.M)


def test_readme_is_short_and_its_numbers_are_measured() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 10_000
    _, _, rest = text.partition("## In numbers")
    numbers = re.findall(r"\d+\.\d+", rest.partition("\n## ")[0])
    assert len(numbers) >= 6
    measured = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "weights.md"))
    stale = [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", measured)]
    assert not stale, "these are neither in docs/benchmarks.md nor in docs/weights.md"


def test_citation_is_of_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "docs" / "example.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "commit it without outputs"
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "example.ipynb", "exec"), variables)
    assert "objective" in capsys.readouterr().out
    assert variables["colors"]["chroma kept"] > 75


@pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings_handlers"))),
    reason="MkDocs is not installed: pip install 'dmfnet-fast[docs]'",
)
def test_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert not list(site.rglob("*.py"))
    assert "dmfnet_fast.Fuser.fuse" in (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "<table>" in (site / "kernels" / "index.html").read_text(encoding="utf-8")
