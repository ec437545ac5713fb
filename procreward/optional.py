"""Packages that are not always installed.

* :func:`need` - import one, or say what to install.
"""

from __future__ import annotations

import importlib
from typing import Any

from procreward.errors import MissingDependencyError

__all__ = ["ARROW", "FFMPEG", "H5PY", "JINJA2", "MATPLOTLIB", "need"]

ARROW = ("pyarrow.parquet", "Parquet and Arrow files need pyarrow", "procreward[relabel]")
FFMPEG = ("imageio_ffmpeg", "Videos need ffmpeg", "imageio[ffmpeg]")
H5PY = ("h5py", "HDF5 files need h5py", "procreward[relabel]")
JINJA2 = ("jinja2", "The report is made with Jinja2", "procreward[report]")
MATPLOTLIB = ("matplotlib.figure", "Figures need matplotlib", "procreward[report]")


def need(package: tuple[str, str, str]) -> Any:
    """Import a module.

    Args:
        package: What to import, who needs it, and what pip is told to install, such as
            :data:`H5PY`.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it cannot be imported; it says why, and how to install it.
    """
    name, what_for, install = package
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f'{what_for}, which could not be imported ({error}). Run `pip install "{install}"`.'
        ) from error
