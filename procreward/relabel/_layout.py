"""What folders of videos and of pictures have in common: order, names, instructions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from procreward.errors import DatasetError

__all__ = [
    "INSTRUCTIONS",
    "check_instructions",
    "check_unique",
    "digest",
    "files_in",
    "folders_in",
    "natural",
    "read_instructions",
    "same_views",
]

INSTRUCTIONS = "instructions.json"
"""Name of the file that maps the names of episodes to their tasks in words."""


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that counts: ``"demo_2"`` before ``"demo_10"``."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with one of the endings, in order; hidden ones left out."""
    found = (child for child in folder.iterdir() if child.suffix.lower() in suffixes)
    return sorted(
        (child for child in found if child.is_file() and not child.name.startswith(".")),
        key=lambda child: natural(child.name),
    )


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, in order; hidden ones left out."""
    return sorted(
        (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")),
        key=lambda child: natural(child.name),
    )


def read_instructions(folder: Path) -> dict[str, str]:
    """Read the names and their instructions, none if there is no file."""
    path = folder / INSTRUCTIONS
    if not path.is_file():
        return {}
    try:
        # With the mark that editors on Windows begin files with, or without.
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} must be JSON: {error}.") from error
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise DatasetError(
            f"{str(path)!r} must map names of episodes (or '*') to instructions, got "
            f"{type(values).__name__}."
        )
    return values


def check_instructions(given: Mapping[str, str], names: Sequence[str], folder: Path) -> None:
    """Refuse instructions for episodes that there are not."""
    unknown = sorted(set(given) - {"*", *names})
    if unknown:
        raise DatasetError(
            f"{str(folder / INSTRUCTIONS)!r} must name episodes of the folder, got "
            f"{unknown[0]!r}; there are {', '.join(map(repr, names[:5]))}"
            f"{', ...' if len(names) > 5 else ''}."
        )


def digest(paths: Sequence[Path], root: Path) -> str:
    """Names, sizes and times of change of files."""
    parts = []
    for path in paths:
        status = path.stat()
        name = path.relative_to(root).as_posix() if path != root else path.name
        parts.append(f"{name}:{status.st_size}:{status.st_mtime_ns}")
    return ";".join(parts)


def same_views(found: Mapping[str, Sequence[str]], root: Path) -> tuple[str, ...]:
    """Views of all episodes; refuses episodes that differ in them."""
    first, views = next(iter(found.items()))
    for name, others in found.items():
        if set(others) != set(views):
            raise DatasetError(
                f"Episodes of {str(root)!r} must have the same views, got {sorted(views)} of "
                f"{first!r} and {sorted(others)} of {name!r}."
            )
    return tuple(views)


def check_unique(names: Sequence[str], root: Path) -> None:
    """Refuse names that come up twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DatasetError(
                f"Episodes of {str(root)!r} must have names of their own, got two of {name!r}; "
                "rename one."
            )
