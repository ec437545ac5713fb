"""Presets: one YAML file per named configuration, readable with ``importlib.resources``."""
