"""Experiments: every arm and seed of a published table, resumable (docs/experiments.md)."""
