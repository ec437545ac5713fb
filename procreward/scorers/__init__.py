"""Reward models: each module holds one, with its prompt and parser."""
