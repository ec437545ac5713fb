"""The language model on a cache of our own.

Chunks, holes and trees of tokens, fused kernels for small models, CUDA graphs.
"""
