"""Deletion of a contribution from a device or from a saved adapter, and the handover refit."""
