"""Rounds in which a device mixed with no neighbour although it had some: late updates, losses, partitions."""

from __future__ import annotations

from emulation.analysis.records import Record, RunRecords


def rounds_alone(run: RunRecords) -> Record:
    """{"count", "of"}: device-rounds without a neighbour's manifest, of those with more than one member."""
    lines = [line for device in run.devices for line in run.metrics[device] if len(line["members"]) > 1]
    return {"count": sum(not line.get("weights") for line in lines), "of": len(lines)}
