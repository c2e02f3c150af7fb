"""Runs of a scenario: backends that start devices, and the one loop that all backends share."""
