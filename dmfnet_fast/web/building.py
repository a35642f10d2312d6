"""Builds the page from its sources with npm. Also runs where a wheel is made, so it imports nothing of the package."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "page"
OLDEST_NODE = 20
_NEEDED = f"Node.js {OLDEST_NODE} or newer with npm, and their registry"


class BuildError(Exception):
    """The page cannot be built; the message says why and what to do."""


def digest() -> str:
    """A hash of all sources and of the lock file: what was built from them is theirs."""
    known = hashlib.sha256()
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file() and "node_modules" not in path.parts):
        known.update(f"{path.relative_to(SOURCES).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return known.hexdigest()[:16]


def npm() -> str | None:
    """The program npm; None if it is not installed."""
    return shutil.which("npm")


def node() -> str:
    """The program node, which may not be installed."""
    return shutil.which("node") or "node"


def _version_of(program: str) -> str:
    """What a program says of its version; "" if it is not there."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        lines = [line for line in said if re.match(r"npm (error|ERR!)|\w*Error:|\W*\[ERROR\]", line)]
        reason = (lines or said[-1:] or ["no message"])[0].removeprefix("Error: ")
        raise BuildError(f"building the page failed at {' '.join(command[1:3])}: {reason.strip()}; it needs {_NEEDED}")


def install(folder: Path) -> None:
    """Put the sources and the packages of the lock file, none of whose scripts are run, into an empty folder.

    Raises:
        BuildError: npm is not installed or fails.
    """
    program = npm()
    if program is None:
        raise BuildError(f"npm is not installed, which builds the page: it needs {_NEEDED}")
    version = _version_of(node())
    if not version.startswith("v") or int(version[1:].split(".")[0]) < OLDEST_NODE:
        raise BuildError(f"Node.js {version or 'is not installed, or'} is too old: the page needs {_NEEDED}")
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _run(program, "ci", *options, folder=folder)


def run_build(folder: Path) -> None:
    """Build the page in a folder made by `install`, into its folder `built`.

    Raises:
        BuildError: the build fails.
    """
    _run(node(), "build.mjs", "built", folder=folder)


def build(folder: Path) -> None:
    """Build the page into a folder that does not exist yet.

    Raises:
        BuildError: npm is not installed or fails.
    """
    with tempfile.TemporaryDirectory(prefix=".page-", dir=folder.parent) as place:
        workshop = Path(place) / "page"
        install(workshop)
        run_build(workshop)
        try:
            (workshop / "built").replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has built it meanwhile
                raise
