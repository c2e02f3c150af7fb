"""Authentication of connections: answers libzmq's ZAP requests (ZeroMQ RFC 27) from the network's keys.

Sans-I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from zmq.utils import z85

from transport.security.keys import NetworkKeys

ENDPOINT = "inproc://zeromq.zap.01"  # fixed by RFC 27
DOMAIN = b"unweft"
VERSION, MECHANISM = b"1.0", b"CURVE"
log = logging.getLogger("unweft")


class ZapHandler:
    """Decides on CURVE clients. The user id of an admitted connection is the client's public key (Z85)."""

    def __init__(self, keys: NetworkKeys) -> None:
        self.keys = keys

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply to [version, id, domain, address, identity, mechanism, credential]: status 200 or 400
        (RFC 27).
        """
        request_id = request[1] if len(request) > 1 else b""
        public = self._admitted(request)
        if public is None:
            return [VERSION, request_id, b"400", b"not admitted", b"", b""]
        return [VERSION, request_id, b"200", b"OK", public, b""]

    def _admitted(self, request: Sequence[bytes]) -> bytes | None:
        if len(request) != 7 or (request[0], request[2], request[5]) != (VERSION, DOMAIN, MECHANISM):
            return None
        if len(request[6]) != 32:
            return None
        public = z85.encode(request[6])
        if self.keys.admits(public):
            return public
        log.debug(
            "client key %s from %s is not admitted", public.decode(), request[3].decode(errors="replace")
        )
        return None
