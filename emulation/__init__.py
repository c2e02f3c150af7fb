"""The testbed: scenarios, the launcher, what a run records and how it is shown."""

from emulation.package_names import pin

pin()
