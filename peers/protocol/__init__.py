"""The decisions of one device: events and times in, actions out; no torch, no sockets, no asyncio."""
