"""LeRobot itself reads the sample datasets and what the relabeller made of them.

``run.sh`` does it all: the package's own side is :mod:`~scripts.verify_lerobot.__main__`, the
owner's side is ``owner_lerobot.py``, which must not import procreward.
"""
