"""Local training, and measurements of the loss."""
