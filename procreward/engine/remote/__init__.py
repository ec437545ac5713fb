"""Engines whose model runs elsewhere: behind a server, or in vLLM."""
