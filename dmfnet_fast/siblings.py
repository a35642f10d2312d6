"""Checks that `kernels`, `export` and `train` are this project's packages: other distributions may use these names."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dmfnet_fast.errors import MissingExtraError

ROOT = Path(__file__).parents[1]


def check_ours(package: str) -> None:
    """Make sure that `import package` finds the one that was installed with `dmfnet_fast`.

    Raises:
        MissingExtraError: the package is missing, another distribution's package of that name is found first, or one
            has been installed over ours.
    """
    found = find_spec(package)
    where = Path(found.origin).parent if found and found.origin else None
    if where is None:
        raise MissingExtraError(f"{ROOT / package}: is missing; install dmfnet-fast again")
    if where.resolve() != (ROOT / package).resolve():
        raise MissingExtraError(
            f"{where}: a package named {package!r} that does not belong to dmfnet-fast is found first; "
            "remove it from PYTHONPATH and from the working folder, or uninstall it"
        )
    if getattr(import_module(package), "OWNER", None) != "dmfnet-fast":
        raise MissingExtraError(
            f"{where}: another distribution has installed its package {package!r} over dmfnet-fast's; uninstall it, "
            "then install dmfnet-fast again"
        )
