"""`import dmfnet_fast` is cheap: numpy, Pillow and the standard library."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import sys
import numpy, PIL.Image
before = set(sys.modules)
import dmfnet_fast
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
print(len(before), len(sys.modules))
"""


def test_import_loads_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    packages, counts = result.stdout.splitlines()
    assert set(packages.split()) <= {"dmfnet_fast", "numpy", "PIL"}
    before, after = map(int, counts.split())
    # The benchmark measures the time; the number of modules is what makes it.
    assert after < 2 * before


def test_public_names() -> None:
    import dmfnet_fast

    assert all(hasattr(dmfnet_fast, name) for name in dmfnet_fast.__all__)
