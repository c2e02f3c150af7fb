"""Bytes between devices: messages, codecs, shaping, sockets. This package knows nothing of models."""
