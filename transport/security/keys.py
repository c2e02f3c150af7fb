"""Keys: the network key (who may talk), a device's CURVE pair (who is connected), and its signing key.

A network key is 32 random bytes that all devices of a run hold. Two CURVE pairs are derived from it (HKDF,
RFC 5869): the *server* pair, which every inbox uses, and the *client* pair. A device without the key does not
know the server's public key, and gets no answer to a first message for another key (CurveZMQ, RFC 26). A
client authenticates with the client pair of the same network key or, with an allow-list, with its own pair,
which the list binds to its id.

Rotation has the three steps of serf: `installed` (all devices know both keys, the old one serves), `used`
(the new one serves), `removed`. libzmq fixes a socket's server key when it binds. So an inbox serves the
*primary* key only, and a client tries each of its keys until one fits (zmq_dealer.py). The alternative, one
bound ROUTER for each active key, breaks no connection, but needs a second published port on every device and
reorders messages of a link that moves between sockets. This design breaks one connection per link at `used`.
Messages in flight may be lost then, so a rotation takes place between rounds. Old connections end with it: a
leaked key is useless at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import zmq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from zmq.utils import z85

from coordinator_free.ranges import path_component

NETWORK_FILE, ALLOWED_FILE = "network.keys", "allowed.json"
SECRET_BYTES = 32
MAX_ACTIVE = 2
log = logging.getLogger("unweft")


@dataclass(frozen=True, slots=True)
class CurvePair:
    """A CURVE key pair, both halves in Z85 (40 bytes; ZeroMQ RFC 32)."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> CurvePair:
        return cls(*zmq.curve_keypair())

    @classmethod
    def of_secret(cls, secret: bytes) -> CurvePair:
        """The pair of a secret half in Z85. Raises ValueError for anything else."""
        if len(secret) != 40 or len(_z85(secret)) != 32:
            raise ValueError("not a CURVE secret key: 40 characters of Z85 are required")
        return cls(zmq.curve_public(secret), secret)


@dataclass(frozen=True, slots=True)
class NetworkKeys:
    """The keys of one device: the network keys and, with an allow-list, its own pair. Picklable.

    `secrets`: the primary key first, at most one more. `allowed`: device id -> CURVE public key (Z85); None:
    every holder of the network key may use any id. `signers`: device id -> Ed25519 public key, for
    the devices of the allow-list. Raises ValueError for invalid keys.
    """

    secrets: tuple[bytes, ...] = field(repr=False)
    device: CurvePair | None = None
    allowed: Mapping[str, bytes] | None = None
    signers: Mapping[str, bytes] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.secrets) <= MAX_ACTIVE or len(set(self.secrets)) != len(self.secrets):
            raise ValueError(f"one or two different network keys can be active, not {len(self.secrets)}")
        if any(len(secret) != SECRET_BYTES for secret in self.secrets):
            raise ValueError(f"a network key has {SECRET_BYTES} bytes")
        if self.allowed is not None and self.device is None:
            raise ValueError("with an allow-list a device needs a key pair of its own")

    @classmethod
    def generate(cls) -> NetworkKeys:
        return cls((secrets.token_bytes(SECRET_BYTES),))

    @classmethod
    def for_devices(cls, devices: Iterable[str]) -> dict[str, NetworkKeys]:
        """One network key for all, one pair for each device, and the allow-list that binds ids to pairs."""
        common, pairs = cls.generate(), {device: CurvePair.generate() for device in devices}
        allowed = {device: pair.public for device, pair in pairs.items()}
        signers = {device: identity_of(pair).public for device, pair in pairs.items()}
        common = replace(common, signers=signers)
        return {device: replace(common, device=pair, allowed=allowed) for device, pair in pairs.items()}

    def server(self, index: int = 0) -> CurvePair:
        """The pair of an inbox; `index` counts the active keys."""
        return _derived(self.secrets[index], b"server")

    def client(self, index: int = 0) -> CurvePair:
        """The pair with which this device authenticates."""
        return self.device or _derived(self.secrets[index], b"client")

    def local_password(self, endpoint: str, index: int = 0) -> bytes:
        """What a client shows to the inbox behind a socket file (64 hex digits), where nothing is encrypted.

        It proves a network key. It is of no use at another inbox, and reveals nothing of the key.
        """
        info = b"unweft local link " + endpoint.encode()
        return HKDF(SHA256(), 32, salt=None, info=info).derive(self.secrets[index]).hex().encode()

    def admits_locally(self, endpoint: str, password: bytes) -> bool:
        """Whether `password` opens the inbox behind a socket file: it is that of the primary network key.

        With an allow-list: never, since a password does not prove which device connects.
        """
        return self.allowed is None and hmac.compare_digest(password, self.local_password(endpoint))

    def admits(self, public: bytes) -> bool:
        """Whether a client with this public key (Z85) may connect."""
        return public in (self.allowed.values() if self.allowed is not None else (self.client().public,))

    def binds(self, source: str, public: str) -> bool:
        """Whether a connection authenticated with `public` (Z85) may speak as `source`."""
        return self.allowed is None or self.allowed.get(source) == public.encode()

    def owner(self, public: str) -> str:
        """The device id to which a public key is bound; empty without an allow-list."""
        return next((d for d, key in (self.allowed or {}).items() if key == public.encode()), "")

    def signer(self, device: str) -> bytes | None:
        """The signing key that the allow-list binds to a device; b"" if it is not listed.

        None without an allow-list, and for a list without signing keys.
        """
        if self.allowed is None or not self.signers:
            return None
        return self.signers.get(device, b"") if device in self.allowed else b""

    def identity(self) -> DeviceIdentity | None:
        """The signing key of this device that the allow-list names; None without one."""
        return identity_of(self.device) if self.device is not None and self.signers else None

    def installed(self, secret: bytes) -> NetworkKeys:
        """First step of a rotation: add the new key; the primary key still serves."""
        return replace(self, secrets=(*self.secrets, secret))

    def used(self, secret: bytes) -> NetworkKeys:
        """Second step: make an installed key the primary key. Raises ValueError if it is not installed."""
        if secret not in self.secrets:
            raise ValueError("a key must be installed before it is used")
        return replace(self, secrets=(secret, *(s for s in self.secrets if s != secret)))

    def label(self, index: int = 0) -> str:
        """A printable name of an active key, which reveals nothing about the key."""
        return hashlib.sha256(b"unweft label " + self.secrets[index]).hexdigest()[:8]

    def removed(self, secret: bytes) -> NetworkKeys:
        """Last step: remove the old key. Raises ValueError for the primary key."""
        if secret == self.secrets[0]:
            raise ValueError("the primary key cannot be removed; use another key first")
        return replace(self, secrets=tuple(s for s in self.secrets if s != secret))


def generate(folder: Path, devices: Iterable[str] = ()) -> NetworkKeys:
    """Write new key files (mode 0600): a network key and, for named devices, their pairs and the allow-list.

    Raises FileExistsError, before it writes anything, if one of the files exists.
    """
    pairs = {device: CurvePair.generate() for device in devices}
    names = [NETWORK_FILE, *([ALLOWED_FILE] if pairs else []), *map(_device_file, pairs)]
    for name in names:
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists; key material is never overwritten")
    keys = NetworkKeys.generate()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _write_private(folder / NETWORK_FILE, _lines(keys.secrets))
    for device, pair in pairs.items():
        _write_private(folder / _device_file(device), pair.secret + b"\n")
    if pairs:
        allowed = {
            device: f"{pair.public.decode()} {identity_of(pair).public.hex()}"
            for device, pair in pairs.items()
        }
        _write_private(folder / ALLOWED_FILE, json.dumps(allowed, indent=1).encode() + b"\n")
    return keys


def rotate(folder: Path, step: Callable[[NetworkKeys], NetworkKeys]) -> NetworkKeys:
    """Apply one step of a rotation to the network keys in a folder. Readers find the old file or the new one.

    Raises ValueError, and changes nothing, if the file or the step is wrong.
    """
    path = folder / NETWORK_FILE
    keys = step(_network(path))
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)  # left over from an interrupted step
    _write_private(fresh, _lines(keys.secrets))
    fresh.replace(path)
    return keys


def load(folder: Path, device: str) -> NetworkKeys:
    """A device's keys from a folder that `generate` wrote.

    Network keys: one per line in hex, the primary first.

    Raises ValueError with the file's name for a missing or malformed file.
    """
    keys = _network(folder / NETWORK_FILE)
    path = folder / ALLOWED_FILE
    try:
        if not path.exists():
            return keys
        allowed, signers = _listed(path)
        path = folder / _device_file(device)
        pair = CurvePair.of_secret(_read_text(path).strip().encode())
        return replace(keys, device=pair, allowed=allowed, signers=signers)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_signers(folder: Path) -> dict[str, bytes]:
    """The signing keys of the allow-list in a folder that `generate` wrote, by device.

    Raises ValueError with the file's name if there is no list, or if it names no signing keys.
    """
    path = folder / ALLOWED_FILE
    try:
        signers = _listed(path)[1]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not signers:
        raise ValueError(f"{path}: it names no signing keys")
    return signers


def _listed(path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The allow-list: the CURVE key and the signing key of each device."""
    words = {str(name): str(listed).split() for name, listed in dict(json.loads(_read_text(path))).items()}
    allowed = {name: listed[0].encode() for name, listed in words.items()}
    return allowed, {name: bytes.fromhex(listed[1]) for name, listed in words.items() if len(listed) > 1}


def _network(path: Path) -> NetworkKeys:
    try:
        return NetworkKeys(tuple(bytes.fromhex(line) for line in _read_text(path).split()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(secrets_: Iterable[bytes]) -> bytes:
    return b"".join(secret.hex().encode() + b"\n" for secret in secrets_)


class DeviceIdentity:
    """An Ed25519 private key and its public half (32 bytes), with which a device signs its messages.

    `run`: the run that every signed statement names (`in_run`).
    """

    def __init__(self, private: Ed25519PrivateKey, run: str = "") -> None:
        self._private, self.run = private, run
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def generate(cls, seed: bytes | None = None) -> DeviceIdentity:
        """A new key; equal 32-byte seeds give equal keys. Raises ValueError for another length."""
        if seed is None:
            return cls(Ed25519PrivateKey.generate())
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load_or_create(cls, path: Path) -> DeviceIdentity:
        """The key in a file that only its owner may read. A returning device keeps its key.

        Raises ValueError if the file holds something else.
        """
        if path.exists():
            return cls.generate(_read(path))
        identity = cls.generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_private(path, identity._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
        return identity

    def for_run(self, run: str) -> DeviceIdentity:
        """The same key, for statements of one run."""
        return DeviceIdentity(self._private, run)

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._private.sign(in_run(self.run, data))


def in_run(run: str, data: bytes) -> bytes:
    """The bytes that are signed for a statement: it names its run, so that no other run accepts it.

    `run`: the name that all devices of a run share (docs/security.md); "": none.
    """
    return f"run {run}\n".encode() + data if run else data


def identity_of(pair: CurvePair) -> DeviceIdentity:
    """The signing key that belongs to a device's CURVE pair, so that one secret file holds both."""
    seed = HKDF(SHA256(), 32, salt=None, info=b"unweft signing").derive(_z85(pair.secret))
    return DeviceIdentity.generate(seed)


def verify(public: bytes, data: bytes, signature: bytes, run: str = "") -> bool:
    """Whether the holder of `public` signed `data` for `run`. Malformed keys and signatures: False."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, in_run(run, data))
    except (InvalidSignature, ValueError):
        return False
    return True


def _derived(secret: bytes, role: bytes) -> CurvePair:
    raw = HKDF(SHA256(), 32, salt=None, info=b"unweft curve " + role).derive(secret)
    return CurvePair.of_secret(z85.encode(raw))


def _z85(text: bytes) -> bytes:
    try:
        return bytes(z85.decode(text))
    except (KeyError, IndexError, OverflowError, ValueError) as error:
        raise ValueError(f"not Z85: {type(error).__name__}") from None


def _device_file(device: str) -> str:
    try:
        return path_component(device) + ".curve"
    except ValueError:
        raise ValueError(f"{device!r} cannot name a key file") from None


def _read(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        log.warning("other users may read %s; run chmod 600", path)
    return path.read_bytes()


def _read_text(path: Path) -> str:
    """The text of a file. An editor may have put a byte order mark before it."""
    return _read(path).decode("utf-8-sig")


def _write_private(path: Path, content: bytes) -> None:
    """Create the file with O_EXCL and its final mode, so that other users can never open it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
