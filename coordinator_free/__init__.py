"""What devices decide with nobody in charge: pure decisions, no sockets, no sleeping."""
