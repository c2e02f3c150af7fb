"""What a run shows: progress in the terminal, a table, plots, an HTML page."""
