"""Local training and what a device measures of its loss."""
