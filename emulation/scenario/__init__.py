"""Scenarios: their schema, loading, checks, and scripted events."""
