"""Frames to what the language model sees of them: patches, the vision tower, each frame once."""
