"""A hook of Hatch: wheels hold the built page, so that users need no npm."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _building() -> Any:
    """`dmfnet_fast.web.building`, which is not installed yet, nor are the libraries of the package."""
    spec = importlib.util.spec_from_file_location("building", Path(__file__).with_name("building.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class WithPage(BuildHookInterface[Any]):
    """Builds the page into a temporary folder, and puts it into the wheel as dmfnet_fast/web/built."""

    _place: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, unless the wheel only points to the sources or there is no npm.

        Raises:
            BuildError: npm fails, and DMFNET_WITHOUT_PAGE is not set.
        """
        if version == "editable" or os.environ.get("DMFNET_WITHOUT_PAGE"):
            return
        building = _building()
        if building.npm() is None:
            self.app.display_warning("npm is not installed: the wheel holds no page for browsers")
            return
        self._place = tempfile.mkdtemp()
        built = Path(self._place) / "built"
        try:
            building.build(built)
        except building.BuildError as error:
            self.finalize()  # Hatch does not
            raise building.BuildError(f"{error}; DMFNET_WITHOUT_PAGE=1 makes a wheel without the page") from error
        build_data["force_include"][str(built)] = "dmfnet_fast/web/built"

    def finalize(self, *_: Any) -> None:
        """Remove the temporary folder."""
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
