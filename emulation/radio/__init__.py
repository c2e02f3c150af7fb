"""The radio model: path loss, fading, interference, mobility, recorded traces."""
