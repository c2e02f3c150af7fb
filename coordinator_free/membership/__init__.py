"""Who is there, with nobody in charge: signed records, slots, failure detection and gossip partners."""
