"""The state of a run while it goes on, and the page that shows it."""
