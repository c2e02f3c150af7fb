"""Which devices of a run never met: neither knew the other as a member, also not over a third device."""

from __future__ import annotations

import networkx as nx

from emulation.analysis.records import RunRecords, in_order

INITIAL_MEMBERS = {"training": "members", "unsettled": "known"}  # event -> field


def separate_groups(run: RunRecords) -> list[list[str]]:
    """The groups of devices between which no device knew another; empty if there is only one group."""
    graph: nx.Graph[str] = nx.Graph()
    for device in run.devices:
        if run.events[device] or run.metrics[device]:
            graph.add_node(device)
    for device in list(graph):
        graph.add_edges_from((device, peer) for peer in _known(run, device) if peer in graph)
    groups = [in_order(group) for group in nx.connected_components(graph)]
    return sorted(groups, key=lambda group: run.devices.index(group[0])) if len(groups) > 1 else []


def nobody_met(groups: list[list[str]]) -> bool:
    """Whether each device of a run was alone, and there was more than one."""
    return len(groups) > 1 and all(len(group) == 1 for group in groups)


def _known(run: RunRecords, device: str) -> set[str]:
    """All members that a device ever knew, by its records."""
    known = {str(peer) for line in run.metrics[device] for peer in line.get("members", ())}
    for event in run.events[device]:
        if event["event"] == "peer_joined":
            known.add(str(event["peer"]))
        known.update(map(str, event.get(INITIAL_MEMBERS.get(event["event"], ""), ())))
    return known
