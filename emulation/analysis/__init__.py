"""What a run recorded, and the figures that follow from it."""
