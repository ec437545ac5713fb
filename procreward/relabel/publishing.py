"""Files that appear complete or not at all, in a folder that one run at a time works in.

* :class:`FolderLock` - keeps a second run out.
* :func:`publish` - flush to disk and rename.
* :func:`check_free_space` - before anything is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
from pathlib import Path

from procreward.errors import ConfigError, LockedError

__all__ = ["FolderLock", "check_free_space", "flush", "publish", "remove"]

_SPARE_BYTES = 64 * 1024 * 1024


class FolderLock:
    """Lets one process work in a folder, as a context manager.

    The lock is the operating system's (``flock`` on ``.lock``), so it ends with the process however
    that ends; the file says who holds it, and is removed at the end.

    Args:
        folder: Made if it does not exist.

    Raises:
        LockedError: On entering, if another process works there; it is named.
        ConfigError: On entering, if the folder cannot be written or locked.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._handle = -1

    def __enter__(self) -> FolderLock:
        """Take the lock."""
        while True:
            handle = self._opened()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(handle, 400).decode(errors="replace").strip()
                os.close(handle)
                raise LockedError(
                    f"Another run works in {str(self._path.parent)!r}: "
                    f"{holder or 'a process that has just begun'}. Wait for it, or give another "
                    "`out`."
                ) from error
            except OSError as error:
                os.close(handle)
                raise ConfigError(
                    f"`out` must be on a file system with locks, got {str(self._path.parent)!r}: "
                    f"{error}. Give a folder on another one, or mount it with locks (Lustre: "
                    "-o flock)."
                ) from error
            if _is_at(handle, self._path):
                break
            os.close(handle)  # its holder removed it meanwhile
        os.ftruncate(handle, 0)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        text = f"process {os.getpid()} on {socket.gethostname()}, {command}\n"
        os.write(handle, text.encode(errors="backslashreplace"))
        self._handle = handle
        return self

    def _opened(self) -> int:
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"`out` must be a folder that can be written, got {str(folder)!r}: {error}."
            ) from error

    def __exit__(self, *_: object) -> None:
        """Remove the file and let go."""
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def flush(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to disk; links are left alone."""
    if path.is_symlink():
        return
    if path.is_dir():
        for child in path.iterdir():
            flush(child)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(staged: Path, target: Path) -> None:
    """Flush what was staged and move it to its place, which it takes over.

    A folder that is in the place goes beside what was staged first, and is then deleted, since only
    an empty one can be renamed over.

    Args:
        staged: A file or folder on the same file system.
        target: Its place; missing parent folders are made.
    """
    flush(staged)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = staged.with_name(staged.name + ".old")
    if target.is_dir():
        remove(old)
        target.rename(old)
    staged.replace(target)
    _flush_entry(target.parent)
    remove(old)


def _flush_entry(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or folder if it is there; what links lead to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_free_space(folder: Path, needed_bytes: int) -> int:
    """Refuse to begin what will not fit.

    Args:
        folder: Where it is to be written; need not exist yet.
        needed_bytes: An estimate.

    Returns:
        Bytes that are free.

    Raises:
        ConfigError: If they are too few.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes + _SPARE_BYTES:
        raise ConfigError(
            f"`out` must be on a disk with room for about {needed_bytes / 1e6:.0f} MB, got "
            f"{free / 1e6:.0f} MB free at {str(folder)!r}."
        )
    return free
