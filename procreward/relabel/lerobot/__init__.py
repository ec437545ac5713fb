"""LeRobotDataset v2.1 and v3.0: read, and written with rewards.

LeRobot itself is not imported, only its files are read: JSON, parquet (by pyarrow) and video (by
ffmpeg). ``LeRobotDataset``, version 0.3.3 for v2.1 and 0.4.4 for v3.0, loads what is written.
"""

from __future__ import annotations

from procreward.relabel.lerobot.source import LeRobotSource
from procreward.relabel.lerobot.writer import LeRobotWriter

__all__ = ["LeRobotSource", "LeRobotWriter"]
