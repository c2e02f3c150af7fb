"""Key agreement for masked reports: a secret for each pair of devices, expanded to a stream of bytes.

Sources: X25519 (RFC 7748), HKDF (RFC 5869), ChaCha20 (RFC 8439).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class MaskKey:
    """A new X25519 key pair. The private half is never written and never sent. `public`: 32 bytes."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def stream(self, public: bytes, context: bytes, size: int) -> bytes:
        """`size` pseudorandom bytes. Only the holders of the two private keys can compute them.

        Equal arguments give equal bytes. Raises ValueError for a public key that is a point of low order.
        """
        secret = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        key = HKDF(SHA256(), 32, salt=None, info=b"unweft mask " + context).derive(secret)
        return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(size))
