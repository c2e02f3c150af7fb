"""Devices that are started one by one, in containers or by hand, and find their run in a shared folder."""
