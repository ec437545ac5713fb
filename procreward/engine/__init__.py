"""Inference engines for Qwen-VL reward models: loading, preprocessing, prompts, generation."""
