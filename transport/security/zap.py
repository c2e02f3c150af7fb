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
VERSION, CURVE, PLAIN = b"1.0", b"CURVE", b"PLAIN"
LOCAL_USER = b"unweft"  # the same for all devices: the password proves the network key, and no more
log = logging.getLogger("unweft")


class ZapHandler:
    """Decides on CURVE clients or, with `socket_file`, on PLAIN clients of the inbox at that endpoint.

    The user id of an admitted CURVE connection is the client's public key (Z85).
    """

    def __init__(self, keys: NetworkKeys, socket_file: str | None = None) -> None:
        self.keys, self._socket_file = keys, socket_file

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply to [version, id, domain, address, identity, mechanism, *credentials]: status 200 or 400
        (RFC 27).
        """
        request_id = request[1] if len(request) > 1 else b""
        user = self._admitted(request)
        if user is None:
            return [VERSION, request_id, b"400", b"not admitted", b"", b""]
        return [VERSION, request_id, b"200", b"OK", user, b""]

    def _admitted(self, request: Sequence[bytes]) -> bytes | None:
        """The user id of the connection; None: it is refused."""
        if len(request) < 7 or (request[0], request[2]) != (VERSION, DOMAIN):
            return None
        mechanism, credentials = request[5], request[6:]
        if self._socket_file is not None:
            return self._user_of_password(self._socket_file, mechanism, credentials)
        return self._user_of_key(request[3], mechanism, credentials)

    def _user_of_password(
        self, endpoint: str, mechanism: bytes, credentials: Sequence[bytes]
    ) -> bytes | None:
        if mechanism != PLAIN or len(credentials) != 2 or credentials[0] != LOCAL_USER:
            return None
        return LOCAL_USER if self.keys.admits_locally(endpoint, credentials[1]) else None

    def _user_of_key(self, address: bytes, mechanism: bytes, credentials: Sequence[bytes]) -> bytes | None:
        if mechanism != CURVE or len(credentials) != 1 or len(credentials[0]) != 32:
            return None
        public = z85.encode(credentials[0])
        if self.keys.admits(public):
            return public
        log.debug("client key %s from %s is not admitted", public.decode(), address.decode(errors="replace"))
        return None
