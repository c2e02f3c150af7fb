"""One device: its bases, its block, its model, its rounds."""
