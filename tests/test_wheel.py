"""The wheel, used as a stranger would: in a clean environment, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from dmfnet_fast.web.building import npm

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "dmfnet-fuse", "dmfnet-convert", "dmfnet-phantom", "dmfnet-demo", "dmfnet-export", "dmfnet-eval", "dmfnet-view",
    "dmfnet-time",
)  # fmt: skip
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"


class Environment:
    """A virtual environment, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        venv.create(folder / "env", with_pip=True)
        self.scripts = folder / "env" / SCRIPTS
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.variables = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        program = str(self.scripts / command[0])
        result = subprocess.run(
            [program, *command[1:]], cwd=self.work, env=self.variables, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, f"{command}: {result.stdout}\n{result.stderr}"
        return result

    def install(self, *what: str) -> None:
        # Python compiles what is imported, which of torch is a small part.
        options = ("--quiet", "--disable-pip-version-check", "--no-compile")
        self.run("python", "-m", "pip", "install", *options, *what)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (path,) = folder.glob("dmfnet_fast-0.1.0-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("clean"))
    environment.install(str(wheel))
    return environment


def _check_page(environment: Environment, wheel: Path) -> None:
    """The page for browsers is in the wheel, so that neither npm nor any library is needed to serve it."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert "dmfnet_fast/web/built/THIRD-PARTY-NOTICES.txt" in names
    assert not any("node_modules" in name for name in names)
    probe = (
        "from dmfnet_fast.commands.view import pair_site; from pathlib import Path; "
        "site, _ = pair_site(Path('data/test/PET-MRI/MRI/001.png'), Path('data/test/PET-MRI/PET/001.png'), 'nano'); "
        "print(*sorted(site))"
    )
    site = environment.run("python", "-c", probe).stdout.split()
    assert {"index.html", "network.onnx", "worker.js", "given.json", "given/a/0", "given/b/0"} <= set(site)


def test_wheel(environment: Environment, wheel: Path) -> None:
    assert wheel.stat().st_size < 25e6
    with zipfile.ZipFile(wheel) as file:
        packages = {name.split("/")[0] for name in file.namelist()}
    # Not `tests` or `benchmarks`, which other distributions would overwrite.
    assert packages == {"dmfnet_fast", "dmfnet_fast-0.1.0.dist-info", "kernels", "export", "train"}
    listed = environment.run("python", "-m", "pip", "list", "--format=freeze").stdout.lower()
    installed = {line.split("==")[0].split(" ")[0] for line in listed.split()}
    assert installed - {"pip", "setuptools"} == {"dmfnet-fast", "numpy", "pillow", "click"}

    probe = "import dmfnet_fast, kernels, export, train; print(dmfnet_fast.__file__, dmfnet_fast.__version__)"
    where, version = environment.run("python", "-c", probe).stdout.split()
    assert str(ROOT) not in where
    assert version == "0.1.0"
    for command in COMMANDS:
        assert "--help" in environment.run(command, "--help").stdout
    environment.run("dmfnet-phantom", "data", "--train", "2", "--test", "1", "--size", "64")
    pair = ("data/test/PET-MRI/MRI/001.png", "data/test/PET-MRI/PET/001.png")
    if npm() is not None:
        _check_page(environment, wheel)
    missing = environment.run("dmfnet-fuse", *pair, "-o", "fused.png", code=2)
    assert "pip install 'dmfnet-fast[cpu]' or 'dmfnet-fast[torch]'" in missing.stderr
    without_torch = environment.run("python", "-m", "train.stage1", "--data", "data", "--out", "run", code=2)
    assert "dmfnet-fast[t" in without_torch.stderr
    no_export = environment.run("dmfnet-export", "--target", "onnx", code=2)
    assert "torch is not installed" in no_export.stderr
    assert "Traceback" not in missing.stderr + without_torch.stderr + no_export.stderr

    environment.install(f"{wheel}[cpu]")
    environment.run("python", "-c", "import torch", code=1)
    assert environment.run("dmfnet-fuse", *pair, "-o", "by-openvino.png").stdout == "by-openvino.png\n"
    demo = environment.run("dmfnet-demo", "demo")
    assert "no volume is fused: pydicom is not installed: pip install 'dmfnet-fast[dicom]'" in demo.stderr
    assert len(list((environment.work / "demo").glob("*.png"))) == 3

    environment.install(f"torch=={torch.__version__.split('+')[0]}", f"{wheel}[train]")
    settings = ("--data", "data", "--out", "run", "--steps", "2", "--batch", "2")
    environment.run("python", "-m", "train.stage1", *settings)
    environment.run("python", "-m", "train.stage2", *settings[:3], "run2", *settings[4:],
                    "--denoiser", "run/denoiser.safetensors")  # fmt: skip
    environment.run("dmfnet-fuse", *pair, "-o", "own.png", "--engine", "run2/dmfnet.safetensors")
