"""Contributions: frozen bases, blocks, their layout in the model, and the model adapted by them."""
