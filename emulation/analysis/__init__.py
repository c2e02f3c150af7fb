"""Reads the records of a run and computes its summary."""
