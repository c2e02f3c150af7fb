"""Base models: loading, and the shipped model `tiny`."""
