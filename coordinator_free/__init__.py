"""The decisions that devices take without a coordinator.

Pure functions and state machines: no sockets, no sleeping.
"""
