"""Check what pip cannot install: Python, a C compiler and headless OpenGL.

Runs with the standard library alone, before anything is installed. Exit code 0 when all is there,
1 otherwise, with the Debian packages that help.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
import sysconfig
from pathlib import Path

LIBRARIES = {
    "libEGL.so.1": "libegl1 libegl-mesa0 libgl1-mesa-dri",  # MuJoCo renders without a screen
    "libGL.so.1": "libgl1",  # OpenCV, which robosuite imports
    "libgthread-2.0.so.0": "libglib2.0-0",  # OpenCV again
}


def missing() -> list[str]:
    """Return one line for each thing that is missing."""
    problems = []
    # An older Python may well be what runs this.
    if sys.version_info < (3, 11):  # noqa: UP036  that is the check
        problems.append(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: "
            "set PYTHON=/path/to/python3.11"
        )
    for library, packages in LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            problems.append(f"{library} is missing: apt-get install -y {packages}")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        problems.append(
            "no C compiler (robosuite's keyboard driver is built from source): "
            "apt-get install -y gcc"
        )
    if not Path("/usr/include/linux/input.h").exists():
        problems.append("linux/input.h is missing: apt-get install -y linux-libc-dev")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        problems.append("Python.h is missing: apt-get install -y python3-dev")
    return problems


def main() -> int:
    """Print what is missing and return the exit code."""
    problems = missing()
    for problem in problems:
        sys.stderr.write(f"system check: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
