"""The error of a run that failed."""


class RunFailed(Exception):
    """A run failed. The message names the device, the reason and the log file."""
