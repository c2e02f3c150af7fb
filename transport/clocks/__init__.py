"""The time of a run: the machine's clock, or a virtual time on which the devices agree."""
