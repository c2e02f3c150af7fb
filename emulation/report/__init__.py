"""The result of a run for a reader: progress in the terminal, a table, plots and an HTML page."""
