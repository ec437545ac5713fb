"""The language model on a cache of our own: chunks, holes, trees, CUDA graphs."""
