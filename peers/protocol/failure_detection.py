"""The messages of the failure detector (coordinator_free/membership/swim.py)."""

from __future__ import annotations

import random

from coordinator_free.membership import swim
from coordinator_free.membership.suspicion import Limits, RecordVersion
from coordinator_free.membership.swim import Swim
from peers.config import DeviceConfig
from peers.protocol.connections import Connections
from peers.protocol.membership import MembershipProtocol
from peers.protocol.state import SECOND, DeviceState, Phase
from transport.wire.messages import Ack, Nack, Ping, PingRequest, Suspect


def settings(config: DeviceConfig) -> swim.Settings:
    """The detector's, from a scenario's (peers/config.py has the formulas).

    A period has room for a direct ack and then for one over a helper, which takes two round trips.
    """
    of, radio = config.membership, config.radio
    round_trip_s = 2 * (radio.latency_s + radio.jitter_s)
    ack_s = of.ack_s or max(of.probe_s / 2, 1.5 * round_trip_s)
    period_ns = int(max(of.probe_s, ack_s + 2.5 * round_trip_s) * SECOND)
    low_ns = None if of.crash_after_s is None else int(of.crash_after_s * SECOND)
    limits = Limits(period_ns, of.suspicion_alpha, of.suspicion_beta, of.confirmations, low_ns)
    return swim.Settings(period_ns, int(ack_s * SECOND), of.helpers, of.health_max, limits)


class FailureDetection:
    """Probes those whom this device is linked to, answers, and carries suspicions out."""

    def __init__(self, state: DeviceState, connections: Connections, membership: MembershipProtocol) -> None:
        self._state, self._connections, self._membership = state, connections, membership
        self._seen: tuple[object, ...] = ()
        self.start(0)

    def start(self, now: int) -> None:
        me, config = self._state.me.device, self._state.config
        self._swim = Swim(me, settings(config), random.Random(f"{config.seed}/{me}"), now)

    def on_timer(self, now: int) -> None:
        self._perform(now, self._swim.tick(now))

    def refresh(self) -> None:
        """After every event: whom to watch, and until when there is time."""
        state = self._state
        finished = sum(peer.finished for peer in state.peers.values())
        seen = (state.members.changes, state.phase is Phase.FINISH, finished)
        if seen != self._seen:
            self._seen = seen
            active = state.members.active().items()
            versions = {name: RecordVersion(name, r.incarnation, r.lamport) for name, r in active}
            self._swim.update_members(versions, self._watched())
        state.timers["probe"] = self._swim.next_ns()

    def _watched(self) -> list[str]:
        """After its own last round a device judges nobody; nor does it one whose last round is over."""
        if self._state.phase is Phase.FINISH:
            return []
        finished = {name for name, peer in self._state.peers.items() if peer.finished}
        return sorted(self._connections.wanted() - finished)

    # -- messages ------------------------------------------------------------------------------------
    def on_ping(self, now: int, source: str, ping: Ping) -> None:
        self._state.tell(source, Ack(ping.number, self._state.members.view()))
        self._connections.reconcile(now, source, ping.view)

    def on_ack(self, now: int, source: str, ack: Ack) -> None:
        self._perform(now, self._swim.on_ack(now, ack.number))
        self._connections.reconcile(now, source, ack.view)

    def on_ping_request(self, now: int, source: str, request: PingRequest) -> None:
        self._perform(now, self._swim.on_ping_request(now, source, request.target, request.number))

    def on_nack(self, source: str, nack: Nack) -> None:
        self._swim.on_nack(source, nack.number)

    def on_suspect(self, now: int, source: str, told: Suspect) -> None:
        about = RecordVersion(told.device, told.incarnation, told.lamport)
        self._perform(now, self._swim.on_suspect(now, source, about, told.accuser))

    # -- decisions -----------------------------------------------------------------------------------
    def _perform(self, now: int, actions: list[swim.Action]) -> None:
        for action in actions:
            match action:
                case swim.Ping(to, number) if self._connections.reach(now, to):
                    self._state.tell(to, Ping(number, self._state.members.view()))
                case swim.Ack(to, number) if to in self._state.peers:
                    self._state.tell(to, Ack(number, self._state.members.view()))
                case swim.Nack(to, number) if to in self._state.peers:
                    self._state.tell(to, Nack(number))
                case swim.AskHelp(to, target, number) if to in self._state.peers:
                    self._state.tell(to, PingRequest(target, number))
                case swim.Spread():
                    self._spread(action)
                case swim.Correct(to, device):
                    self._correct(to, device)
                case swim.Refute():
                    self._membership.refute()
                case swim.Confirm():
                    self._confirm(now, action)

    def _spread(self, action: swim.Spread) -> None:
        about, state = action.about, self._state
        message = Suspect(about.device, about.incarnation, about.lamport, action.accuser)
        if action.again:
            if about.device in state.peers:
                state.tell(about.device, message)
            return
        if action.accuser == state.me.device:
            state.log("suspected", peer=about.device, incarnation=about.incarnation)
        state.tell_all(message)

    def _correct(self, to: str, device: str) -> None:
        record = self._state.members.newest(device)
        if record is not None and to in self._state.peers:
            self._state.tell(to, self._state.gossip([record]))

    def _confirm(self, now: int, action: swim.Confirm) -> None:
        device, since = action.about.device, (now - action.suspected_ns) / SECOND
        self._state.log("confirmed", peer=device, suspected_s=since, accusers=list(action.accusers))
        self._membership.declare(now, device)
