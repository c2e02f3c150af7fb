"""Mixing of copies: the learning graph, the mixing weights, and the allocation of the byte budget."""
