"""The public surface as text: what users import, and what they type.

`python -m tests.surface --write`, in the root of the repository, renews the text that test_surface.py compares with.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click

SURFACE = Path(__file__).with_name("public_surface.txt")
MODULES = (
    "dmfnet_fast",
    "dmfnet_fast.config",
    "dmfnet_fast.engines",
    "dmfnet_fast.errors",
    "dmfnet_fast.fuser",
    "dmfnet_fast.images",
    "dmfnet_fast.metrics",
    "dmfnet_fast.model",
    "dmfnet_fast.phantom",
    "dmfnet_fast.volumes",
)
WITH_SUBMODULES = ("dmfnet_fast.images", "dmfnet_fast.metrics")
COMMANDS = {
    "dmfnet-fuse": "dmfnet_fast.commands.fuse",
    "dmfnet-eval": "dmfnet_fast.commands.eval",
    "dmfnet-export": "export.command",
    "dmfnet-convert": "dmfnet_fast.commands.convert",
    "dmfnet-phantom": "dmfnet_fast.commands.phantom",
    "dmfnet-demo": "dmfnet_fast.commands.demo",
    "dmfnet-view": "dmfnet_fast.commands.view",
    "dmfnet-time": "dmfnet_fast.commands.time",
    "dmfnet-node": "dmfnet_fast.commands.node",
    "python -m train.stage1": "train.stage1",
    "python -m train.stage2": "train.stage2",
    "python -m train.release": "train.release",
}
PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: object) -> bool:
    return isinstance(value, PLAIN) or (type(value) is tuple and all(map(_is_plain, value)))


def _assigned(module: ModuleType) -> dict[str, str | None]:
    """Names that the module itself gives a value, in contrast to those that it imports: what a type's alias is of."""
    found: dict[str, str | None] = {}
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.Assign):
            names = (node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name))
            found.update(dict.fromkeys(names))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_alias = ast.unparse(statement.annotation) == "TypeAlias" and statement.value is not None
            found[statement.target.id] = ast.unparse(statement.value) if is_alias and statement.value else None
    return found


def _names(module: ModuleType) -> list[str]:
    own, assigned = module.__name__, _assigned(module)
    return sorted(
        getattr(module, "__all__", None)
        or (
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and (name in assigned or getattr(value, "__module__", None) == own)
        )
    )


def _members(cls: type) -> dict[str, Any]:
    """What the class and those of ours that it derives from define, but for what is private."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("dmfnet_fast"):
            found.update((name, None) for name in inspect.get_annotations(base))
            found.update(vars(base))
    return {name: found[name] for name in sorted(found) if not name.startswith("_")}


def _class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    given = getattr(cls, "_fields", None)  # of a NamedTuple
    yield f"class {name}{f'({bases})' if bases else ''}: {_signature(cls) if given is None else given}"
    if is_dataclass(cls):
        yield from (f"    field {field.name}: {field.type}" for field in fields(cls))
    for member, value in _members(cls).items():
        if isinstance(value, property):
            yield f"    property {member}{_signature(value.fget)}"
        elif inspect.isroutine(value):
            kind = "" if inspect.isfunction(value) else f"{type(value).__name__} "
            yield f"    {kind}{member}{_signature(getattr(cls, member))}"
        elif not is_dataclass(cls) and given is None:
            yield f"    {member}"


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except ValueError:  # an exception's, which is built in
        return ""


def _value(name: str, value: object, module: str) -> Iterator[str]:
    if inspect.isclass(value) or inspect.isfunction(value):
        if value.__module__ != module and value.__module__ in _modules():
            yield f"{name} is {value.__module__}.{value.__qualname__}"
        elif inspect.isclass(value):
            yield from _class(name, value)
        else:
            yield f"{name}{_signature(value)}"
    elif name != "__version__" and (_is_plain(value) or get_args(value)):
        yield f"{name} = {value!r}"
    else:
        yield f"{name}: {'Path' if isinstance(value, Path) else type(value).__name__}"


@cache
def _modules() -> list[str]:
    paths = {name: import_module(name).__path__ for name in WITH_SUBMODULES}
    return sorted([*MODULES, *(f"{name}.{info.name}" for name in paths for info in pkgutil.iter_modules(paths[name]))])


def _kind(kind: Any) -> str:
    """What click calls a type of values, without the address of the object."""
    if isinstance(kind, click.Choice):
        return "|".join(map(str, kind.choices))
    name: str = kind.name
    return name if " object at " in repr(kind) else repr(kind)


def _parameter(parameter: click.Parameter) -> str:
    is_flag = getattr(parameter, "is_flag", False)
    words = [", ".join([*parameter.opts, *parameter.secondary_opts]), "flag" if is_flag else _kind(parameter.type)]
    words += [word for word in ("multiple", "required") if getattr(parameter, word, False)]
    if parameter.nargs != 1:
        words.append(f"{parameter.nargs} values")
    if _is_plain(parameter.default) and parameter.default is not None and parameter.default is not False:
        words.append(f"default {parameter.default!r}")
    return " ".join(words)


def surface() -> str:
    """Names and signatures of the public modules, and the parameters of every command."""
    lines = []
    for name in _modules():
        module = import_module(name)
        lines += ["", f"[{name}]"]
        aliases = _assigned(module)
        for own in _names(module):
            alias = aliases.get(own)
            lines += _value(own, getattr(module, own), name) if alias is None else [f"{own} = {alias}"]
    for name, module_name in COMMANDS.items():
        lines += ["", f"[{name}]", *map(_parameter, import_module(module_name).main.params)]
    return "\n".join(lines[1:]) + "\n"


@click.command()
@click.option("--write", is_flag=True, help="Renew public_surface.txt.")
def main(write: bool) -> None:
    """Print the public surface."""
    if write:
        SURFACE.write_text(surface(), encoding="utf-8")
    else:
        click.echo(surface(), nl=False)


if __name__ == "__main__":
    main()
