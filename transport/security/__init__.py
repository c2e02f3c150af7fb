"""Keys, authentication and the refusal of replayed messages."""
