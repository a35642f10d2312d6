"""No two modules import each other, directly or through others: each can be read, tested and replaced by itself.

And what is installed imports nothing that is not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dmfnet_fast", "kernels", "export", "train")


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """The files of all modules, by their names; a package is its `__init__`."""
    found = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(module: str, file: Path) -> Iterator[str]:
    """What the import statements of a module name, wherever they are: in functions and for type checkers too."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield source
            # A submodule, unless it is a name in the package.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which modules each module makes run.

    Importing `a.b` runs `a` too, but for those inside of `a`: that has begun to run when they do.
    """
    edges: dict[str, set[str]] = {}
    for module, file in files.items():
        names = set(imported(module, file))
        parents = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
        edges[module] = {n for n in names | parents if n in files and (n in names or not module.startswith(f"{n}."))}
        edges[module].discard(module)
    return edges


def test_no_cycles() -> None:
    files = modules(ROOT, PACKAGES)
    assert len(files) > 50
    # Raises a CycleError that names the modules.
    list(TopologicalSorter(graph(files)).static_order())


def test_nothing_of_a_clone_is_imported() -> None:
    """Wheels lack tests and benchmarks."""
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for module, file in modules(ROOT, PACKAGES).items()
        for name in imported(module, file)
        if name.split(".")[0] in ("tests", "benchmarks")
    }
    assert not found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import made.b", "import made.a"),
        ("from made import b", "from made.a import x"),
        ("from .b import x", "def f() -> None:\n    from . import a"),
        ("from made.b import x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.a import x"),
        ("import made.inner.c", "x = 1"),
    ],
)
def test_cycles_are_found(first: str, second: str, tmp_path: Path) -> None:
    for name, content in {
        "__init__": "",
        "a": first,
        "b": second,
        "inner/__init__": "from made import a",
        "inner/c": "",
    }.items():
        file = tmp_path / "made" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(modules(tmp_path, ("made",)))).static_order())


def test_a_package_that_gives_its_submodules_names(tmp_path: Path) -> None:
    """Its submodules may not take names from it."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "__init__.py").write_text("from made.a import x")
    (tmp_path / "made" / "a.py").write_text("from made.b import x")
    (tmp_path / "made" / "b.py").write_text("x = 1")
    list(TopologicalSorter(graph(modules(tmp_path, ("made",)))).static_order())
    (tmp_path / "made" / "a.py").write_text("from made import b")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(modules(tmp_path, ("made",)))).static_order())
