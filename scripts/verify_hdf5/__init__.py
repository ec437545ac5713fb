"""robomimic and Minari, each in an environment of its own, read what the relabeller wrote.

``run.sh`` does it all: the package's own side is :mod:`~scripts.verify_hdf5.__main__`, the owners'
side are ``owner_robomimic.py`` and ``owner_minari.py``, which must not import procreward.
"""
