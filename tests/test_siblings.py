"""The packages beside dmfnet_fast, whose names others own as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from dmfnet_fast.errors import MissingExtraError
from dmfnet_fast.siblings import check_ours


@pytest.mark.parametrize("package", ["kernels", "export", "train"])
def test_ours_are_found(package: str) -> None:
    check_ours(package)


def test_a_foreign_package_found_first_is_named_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise RuntimeError('not to be run')")
    code = "from dmfnet_fast.siblings import check_ours; check_ours('kernels')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = result.stderr.splitlines()[-1]
    assert said.startswith(f"dmfnet_fast.errors.MissingExtraError: {tmp_path / 'kernels'}: a package named 'kernels'")
    assert "does not belong to dmfnet-fast is found first" in said


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmfnet_fast.siblings.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"kernels: is missing; install dmfnet-fast again"):
        check_ours("kernels")


def test_a_package_installed_over_ours_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kernels, "OWNER")
    with pytest.raises(MissingExtraError, match=r"kernels: another distribution has installed its package 'kernels'"):
        check_ours("kernels")
