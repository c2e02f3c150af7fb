"""Mixing of copies: the learning graph, the mixing weights, and what a byte budget is spent on."""
