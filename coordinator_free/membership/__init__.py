"""Decentralised membership: signed records, slots, failure detection and gossip partners."""
