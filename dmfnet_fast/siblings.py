"""Whether the packages `kernels`, `export` and `train` are ours: other distributions use such plain names too."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dmfnet_fast.errors import MissingExtraError

BESIDE = Path(__file__).parents[1]


def check_ours(package: str) -> None:
    """Make sure that an `import` statement for `package` finds the one that came with this package.

    Raises:
        MissingExtraError: another distribution's package of that name is found first, or has been installed over ours.
    """
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
