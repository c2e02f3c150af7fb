"""Files with blocks: adapters, snapshots and checkpoints."""
