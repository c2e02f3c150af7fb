"""Bytes between devices: messages, codecs, shaping, sockets. Knows nothing of models."""
