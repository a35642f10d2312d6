"""The packages installed beside this one, `kernels`, `export` and `train`, whose plain names others use too."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from dmfnet_fast.errors import MissingExtraError

BESIDE = Path(__file__).parents[1]


def neighbour(module: str) -> ModuleType:
    """Import `module`, such as "kernels.attention", from the packages that came with this one.

    Raises:
        MissingExtraError: another distribution's package of that name is found first, or has been installed over ours.
    """
    package = module.split(".")[0]
    found = find_spec(package)
    where = Path(found.origin).parent if found and found.origin else None
    if where is None:
        raise MissingExtraError(f"{BESIDE / package}: is missing; install dmfnet-fast again")
    if where.resolve() != (BESIDE / package).resolve():
        raise MissingExtraError(
            f"{where}: a package named {package!r} that is not dmfnet-fast's is found first; "
            "remove it from PYTHONPATH and from the working folder, or uninstall it"
        )
    if getattr(import_module(package), "OWNER", None) != "dmfnet-fast":
        raise MissingExtraError(
            f"{where}: another distribution has installed its package {package!r} over dmfnet-fast's; uninstall it, "
            "then install dmfnet-fast again"
        )
    return import_module(module)
