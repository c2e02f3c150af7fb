"""Files that hold blocks: adapters, snapshots and checkpoints."""
