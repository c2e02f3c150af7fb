"""The run's time: the machine's clock, or virtual time that the devices agree on."""
