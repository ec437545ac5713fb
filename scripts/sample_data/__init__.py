"""Sample datasets in every format that the relabeller reads, from scripted robosuite episodes.

``python -m scripts.sample_data`` writes them; :mod:`~scripts.sample_data.episodes` plays the
episodes, and every format has a module with one function that writes episodes in it.
"""
