"""Connections that carry messages: ZeroMQ sockets, or torch.distributed with gloo."""
