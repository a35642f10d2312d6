"""How the fused operations are exported, one module for each.

A module has the name of its kernel's module in `kernels` and ends with its record. The records follow the order of
`kernels.cases`. Kernels that are launched only by networks running on a GPU are never exported and have no module here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from export.ops.record import Function, Record
from export.tensorrt.plugin_kernels import Plugin
from kernels import cases


def _records() -> tuple[Record, ...]:
    files = {file.name for file in iter_modules(__path__)}
    return tuple(import_module(f"{__name__}.{name}").RECORD for name in cases.RECORDS if name in files)


RECORDS = _records()
# Translation of each torch operator dmfnet::NAME to ONNX.
TRANSLATIONS: dict[str, Callable[..., Any]] = {
    name: translate for record in RECORDS for name, translate in record.translations.items()
}
FUNCTIONS: dict[str, Function] = {function.name: function for record in RECORDS for function in record.functions}
PLUGINS: tuple[Plugin, ...] = tuple(plugin for record in RECORDS for plugin in record.plugins)
