"""Prompts as tokens, and as rows of batches of which only what is new is read."""
