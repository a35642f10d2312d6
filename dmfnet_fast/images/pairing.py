"""Pairing of the images of two folders by name."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dmfnet_fast.errors import ImageError
from dmfnet_fast.images import formats
from dmfnet_fast.wording import alternatives


@dataclass(frozen=True)
class PairedFiles:
    """The contents of two folders.

    Attributes:
        pairs: (name without suffix, file of a, file of b), ordered by name.
        problems: (name without suffix, message) for files that have no partner or several.
        ignored: number of other files and folders, hidden ones not counted.
    """

    pairs: list[tuple[str, Path, Path]]
    problems: list[tuple[str, str]]
    ignored: int


def images_by_name(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """The images of a folder by name without suffix, and the number of other files and folders.

    Hidden files are skipped and not counted.

    Raises:
        ImageError: the folder cannot be read.
    """
    names: dict[str, list[Path]] = {}
    ignored = 0
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(f"{folder}: cannot be read: {error.strerror or error}") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        name = formats.name_in_folder(path) if path.is_file() else None
        if name is not None:
            # macOS may store accented names in decomposed form, other systems do not.
            names.setdefault(unicodedata.normalize("NFC", name), []).append(path)
        else:
            ignored += 1
    return names, ignored


def pair_folders(folder_a: Path, folder_b: Path) -> PairedFiles:
    """Pair the images of two folders by name; the suffixes may differ (`7.png` with `7.tif`).

    Raises:
        ImageError: neither folder holds an image, or a folder cannot be read.
    """
    (names_a, others_a), (names_b, others_b) = images_by_name(folder_a), images_by_name(folder_b)
    if not names_a and not names_b:
        kinds = alternatives(reader.name for reader in formats.READERS)
        raise ImageError(
            f"{folder_a}, {folder_b}: hold no images; give folders of {kinds} files (subfolders are not searched)"
        )

    folded_a, folded_b = ({name.casefold(): files[0] for name, files in names.items()} for names in (names_a, names_b))
    pairs, problems = [], []
    for name in sorted(names_a.keys() | names_b.keys()):
        files_a, files_b = names_a.get(name, []), names_b.get(name, [])
        several = [files for files in (files_a, files_b) if len(files) > 1]
        if several:
            problems.append((name, f"{several[0][0]}: {several[0][1].name} has the same name; keep one of them"))
        elif not files_a or not files_b:
            present, missing, others = (files_a[0], folder_b, folded_b) if files_a else (files_b[0], folder_a, folded_a)
            alike = others.get(name.casefold())
            hint = f", where {alike.name} differs in case" if alike else ""
            problems.append((name, f"{present}: has no partner in {missing}{hint}"))
        else:
            pairs.append((name, files_a[0], files_b[0]))
    return PairedFiles(pairs, problems, others_a + others_b)
