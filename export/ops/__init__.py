"""The fused operations as exports know them, one a file.

A file is named as the kernel file that it belongs to, and ends in its record. The records come in the order in which
`kernels.cases` lists the kernels; a kernel that only networks on a GPU launch has no file here.
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
# What the exporter writes for each torch operator dmfnet::NAME.
TRANSLATIONS: dict[str, Callable[..., Any]] = {
    name: translate for record in RECORDS for name, translate in record.translations.items()
}
FUNCTIONS: dict[str, Function] = {function.name: function for record in RECORDS for function in record.functions}
PLUGINS: tuple[Plugin, ...] = tuple(plugin for record in RECORDS for plugin in record.plugins)
