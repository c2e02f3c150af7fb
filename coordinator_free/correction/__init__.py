"""The correction after an event: residuals, network-wide means, and the policies that choose actions."""
