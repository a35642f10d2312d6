"""`dmfnet-export` beside packages of other distributions; its function is tested in tests/export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_foreign_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise RuntimeError('not to be run')")
    call = [sys.executable, "-c", "from dmfnet_fast.commands.export import main; main()"]
    result = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    expected = f"error: {tmp_path / 'export'}: a package named 'export' that does not belong to dmfnet-fast is found"
    assert result.stderr.startswith(expected)
    assert "Traceback" not in result.stderr
