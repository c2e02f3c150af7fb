"""The reference of `unweft bench rounds`: one plain process for each device, D-PSGD over ROUTER/DEALER.

It has no membership, deadlines, checks or counters. A device whose neighbour is gone waits forever.
"""

from __future__ import annotations

import pickle
import time
from collections import defaultdict

import torch
import zmq
from torch import Tensor

from emulation.bench.harness.sgd import RANK, ROWS, SmallStep
from transport.wire.messages import Buffer
from transport.wire.tensor_codec import encode_view

LISTEN = "tcp://127.0.0.1:0"
POLL_MS = 200


class PlainDevice:
    """Exchanges its weights with its neighbours in each round. zero_copy: raw frames instead of pickles."""

    def __init__(self, name: str, zero_copy: bool) -> None:
        torch.set_num_threads(1)
        self._name, self._zero_copy = name.encode(), zero_copy
        self._work = SmallStep(name)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context, self._inbox = context, context.socket(zmq.ROUTER)
        self._out: list[zmq.Socket[bytes]] = []
        self._early: dict[int, list[Tensor]] = defaultdict(list)
        self._round = 0
        self.ended_ns: list[int] = []

    def bind(self) -> str:
        self._inbox.bind(LISTEN)
        return self._inbox.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def connect(self, addresses: list[str]) -> None:
        for address in addresses:
            socket = self._context.socket(zmq.DEALER)
            socket.set(zmq.IDENTITY, self._name)
            socket.connect(address)
            self._out.append(socket)

    def run(self, until_ns: int) -> list[int]:
        """Run rounds until a time (monotonic ns). Returns the end of each round."""
        while time.monotonic_ns() < until_ns and self._one_round(until_ns):
            self.ended_ns.append(time.monotonic_ns())
        return self.ended_ns

    def _one_round(self, until_ns: int) -> bool:
        self._work.step()
        self._send()
        while len(self._early[self._round]) < len(self._out):
            if not self._inbox.poll(POLL_MS):
                if time.monotonic_ns() > until_ns:
                    return False
                continue
            round_, values = self._receive()
            self._early[round_].append(values)
        share = 1 / (1 + len(self._out))  # Metropolis-Hastings weight for equal degrees
        mixed = self._work.weights * share
        for values in self._early.pop(self._round):
            mixed += share * values
        self._work.weights.copy_(mixed)
        self._round += 1
        return True

    def _send(self) -> None:
        if self._zero_copy:
            body = encode_view(self._work.weights.clone(), "fp32", finite=False)
            frames: list[Buffer] = [self._round.to_bytes(8, "big"), body]
        else:
            frames = [pickle.dumps({"round": self._round, "weights": self._work.weights})]
        for socket in self._out:
            socket.send_multipart(frames, copy=not self._zero_copy)

    def _receive(self) -> tuple[int, Tensor]:
        if not self._zero_copy:
            _, data = self._inbox.recv_multipart()
            message = pickle.loads(data)
            return message["round"], message["weights"]
        _, head, body = self._inbox.recv_multipart(copy=False)
        return int.from_bytes(head.bytes, "big"), torch.frombuffer(body.buffer, dtype=torch.float32).view(
            ROWS, RANK
        )
