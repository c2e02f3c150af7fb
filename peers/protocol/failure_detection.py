"""Failure detection: the messages of the SWIM detector (coordinator_free/membership/swim.py)."""

from __future__ import annotations

import random

from coordinator_free.identifiers import BlockKey
from coordinator_free.membership import swim
from coordinator_free.membership.suspicion import Limits, RecordVersion
from coordinator_free.membership.swim import Swim
from peers.config import DeviceConfig
from peers.protocol.connections import Connections
from peers.protocol.membership import MembershipProtocol
from peers.protocol.phases import Phase
from peers.protocol.state import SECOND, DeviceState
from transport.wire.messages import Ack, Nack, Ping, PingRequest, Suspect


def settings(config: DeviceConfig) -> swim.Settings:
    """The detector's settings for a scenario (formulas: peers/config.py).

    A probe period has room for a direct ack, and then for an ack through a helper after two round trips.
    """
    of, radio = config.membership, config.radio
    round_trip_s = 2 * (radio.latency_s + radio.jitter_s)
    ack_s = of.ack_s or max(of.probe_s / 2, 1.5 * round_trip_s)
    period_ns = int(max(of.probe_s, ack_s + 2.5 * round_trip_s) * SECOND)
    low_ns = None if of.crash_after_s is None else int(of.crash_after_s * SECOND)
    limits = Limits(period_ns, of.suspicion_alpha, of.suspicion_beta, of.confirmations, low_ns)
    return swim.Settings(period_ns, int(ack_s * SECOND), of.helpers, of.health_max, limits)


class FailureDetection:
    """Probes the linked members, answers probes, and performs the detector's decisions."""

    def __init__(self, state: DeviceState, connections: Connections, membership: MembershipProtocol) -> None:
        self._state, self._connections, self._membership = state, connections, membership
        self._refute_ns = -SECOND * 3600  # before it, no further suspicion of this device is refuted
        self._seen: tuple[object, ...] = ()  # the inputs that the detector knows
        self.start(0)

    def start(self, now: int) -> None:
        me, config = self._state.me.device, self._state.config
        self._swim = Swim(me, settings(config), random.Random(f"{config.seed}/{me}"), now)

    def on_probe(self, now: int) -> None:
        self._perform(now, self._swim.tick(now))

    def refresh(self) -> None:
        """After every event: give the detector the current members and set its timer."""
        state = self._state
        finished = sum(peer.finished for peer in state.peers.values())
        seen = (state.members.changes, state.phase is Phase.FINISH, finished)
        if seen != self._seen:
            self._seen = seen
            active = state.members.active().items()
            sightings = {name: RecordVersion(name, r.incarnation, r.lamport) for name, r in active}
            self._swim.update_members(sightings, self._watched())
        state.timers["probe"] = self._swim.next_ns()

    def suspected(self) -> set[BlockKey]:
        """The incarnations that are suspected now."""
        return {BlockKey(s.about.device, s.about.incarnation) for s in self._swim.suspicions}

    def _watched(self) -> list[str]:
        """The members to probe: none after the own last round, and none that has closed its last round."""
        if self._state.phase is Phase.FINISH:
            return []
        finished = {name for name, peer in self._state.peers.items() if peer.finished}
        return sorted(self._connections.wanted() - finished)

    # -- messages ------------------------------------------------------------------------------------
    def on_ping(self, now: int, source: str, ping: Ping) -> None:
        self._state.tell(source, Ack(ping.number, self._state.members.digest()))
        self._connections.reconcile(now, source, ping.digest)

    def on_ack(self, now: int, source: str, ack: Ack) -> None:
        self._perform(now, self._swim.on_ack(now, ack.number))
        self._connections.reconcile(now, source, ack.digest)

    def on_ping_request(self, now: int, source: str, request: PingRequest) -> None:
        self._perform(now, self._swim.on_ping_request(now, source, request.target, request.number))

    def on_nack(self, now: int, source: str, nack: Nack) -> None:
        self._swim.on_nack(source, nack.number)

    def on_suspect(self, now: int, source: str, suspect: Suspect) -> None:
        about = RecordVersion(suspect.device, suspect.incarnation, suspect.lamport)
        self._perform(now, self._swim.on_suspect(now, source, about, suspect.accuser))

    # -- decisions of the detector -------------------------------------------------------------------
    def _perform(self, now: int, actions: list[swim.Action]) -> None:
        for action in actions:
            match action:
                case swim.Ping(to, number) if self._connections.reach(now, to):
                    self._state.tell(to, Ping(number, self._state.members.digest()))
                case swim.Ack(to, number) if to in self._state.peers:
                    self._state.tell(to, Ack(number, self._state.members.digest()))
                case swim.Nack(to, number) if to in self._state.peers:
                    self._state.tell(to, Nack(number))
                case swim.AskHelp(to, target, number) if to in self._state.peers:
                    self._state.tell(to, PingRequest(target, number))
                case swim.Spread():
                    self._spread_suspicion(action)
                case swim.Correct(to, device):
                    self._send_record(to, device)
                case swim.Refute() if now >= self._refute_ns:  # accusers repeat themselves once a period
                    self._refute_ns = now + int(self._state.config.membership.probe_s * SECOND) // 4
                    self._membership.refute()
                case swim.Confirm():
                    self._confirm_crash(now, action)

    def _spread_suspicion(self, action: swim.Spread) -> None:
        about, state = action.about, self._state
        message = Suspect(about.device, about.incarnation, about.lamport, action.accuser)
        if action.again:
            if about.device in state.peers:
                state.tell(about.device, message)
            return
        if action.accuser == state.me.device:
            state.log("suspected", peer=about.device, incarnation=about.incarnation)
        state.tell_all(message)

    def _send_record(self, to: str, device: str) -> None:
        """Send the newest record of a device to a peer whose suspicion is out of date."""
        record = self._state.members.newest(device)
        if record is not None and to in self._state.peers:
            self._state.tell(to, self._state.gossip([record]))

    def _confirm_crash(self, now: int, action: swim.Confirm) -> None:
        device, since = action.about.device, (now - action.suspected_ns) / SECOND
        self._state.log("confirmed", peer=device, suspected_s=since, accusers=list(action.accusers))
        self._membership.declare_crashed(now, device)
