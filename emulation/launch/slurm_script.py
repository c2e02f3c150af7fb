"""The batch script of `--on slurm`, and the options with which it is submitted."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from emulation.scenario.schema import Scenario
from emulation.testbed import start_gate
from peers.runtime.external_events import END_SIGNAL

OPTIONS_VARIABLE, PREFIX_VARIABLE = "UNWEFT_SBATCH", "UNWEFT_SLURM_PREFIX"
HEARTBEAT = ".launcher"  # in the run's folder; the launcher changes it all the time
SILENCE_S = 120  # a task whose launcher changes nothing for so long ends itself
LOOK_S = 5  # seconds between two looks at the heartbeat
NOT_SHARED = 66  # exit status of a task that does not see the run's folder (EX_NOINPUT)
END_NOTICE_S = 60  # so long before the time limit, Slurm tells a device that the run ends

# `scancel --batch` signals the device only: it is the process of the script. `scancel --full` signals the
# watch too, which ignores what it can.
TEMPLATE = """#!/bin/sh
# One task of `unweft run --on slurm`: one life of one device.
run={run}
[ -e "$run/scenario.toml" ] || exit {not_shared}
device=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" <<'DEVICES'
{devices}
DEVICES
)
mkdir -p "$run/devices/$device"
exec >>"$run/devices/$device/log.txt" 2>&1
task=$$
(   # the watch: it ends the device, also one that is stopped, when the launcher has gone
    trap '' TERM INT HUP USR1 USR2
    silent=0 last=
    while [ "$silent" -lt {looks} ]; do
        sleep {look_s}
        kill -0 "$task" 2>/dev/null || exit 0
        now=$(cat "$run/{heartbeat}" 2>/dev/null)
        if [ "$now" = "$last" ]; then silent=$((silent + 1)); else silent=0 last=$now; fi
    done
    echo "the launcher has been silent for {silence_s} s: the device ends"
    rm -rf {secret}   # first: Slurm kills this watch too when the device ends
    kill -KILL "$task"
) &
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}"
exec {command} --id "$device"
"""


@dataclass(frozen=True, kw_only=True)
class TaskScript:
    """Makes the batch scripts of one run. `secret`: its folder of keys, on the shared file system."""

    scenario: Scenario
    out: Path
    secret: Path
    prefix: Sequence[str] = ()  # what runs the device: an image, or nothing

    def text(self, devices: Sequence[str]) -> str:
        """The script of an array whose task i is the device i."""
        return TEMPLATE.format(
            run=shlex.quote(str(self.out.absolute())),
            secret=shlex.quote(str(self.secret)),
            devices="\n".join(devices),
            command=shlex.join(self._command()),
            heartbeat=HEARTBEAT,
            not_shared=NOT_SHARED,
            silence_s=SILENCE_S,
            look_s=LOOK_S,
            looks=ceil(SILENCE_S / LOOK_S),
        )

    def _command(self) -> list[str]:
        """The command of a device. In an image, it is the image's own Python."""
        python = "python" if self.prefix else sys.executable
        out = self.out.absolute()
        return [
            *self.prefix,
            *(python, "-m", "unweft", "device", "--scenario", str(out / "scenario.toml"), "--out", str(out)),
            *("--listen", os.environ.get("UNWEFT_LISTEN", "tcp://0.0.0.0:0"), "--wall-clock", "--snapshots"),
            *("--gates", str(out / start_gate.FOLDER), "--identity", str(self.secret / "identity")),
            *(("--keys", str(self.secret / "keys")) if self.scenario.keys.enabled else ()),
        ]

    def options(self) -> list[str]:
        """The options of sbatch. Those of UNWEFT_SBATCH come last, so that they replace the others."""
        return [
            "--no-requeue",  # a device that crashed does not come back by itself
            f"--signal=B:{END_SIGNAL.name.removeprefix('SIG')}@{END_NOTICE_S}",
            "--output=/dev/null",
            "--ntasks=1",
            f"--cpus-per-task={self.scenario.model.threads}",
            *_gpus(self.scenario.model.device),
            *shlex.split(os.environ.get(OPTIONS_VARIABLE, "")),
        ]


def _gpus(device: str) -> list[str]:
    """The GPUs that a scenario's model needs, on each device."""
    name, _, number = device.partition(":")
    return [f"--gres=gpu:{int(number) + 1}"] if name == "cuda" else []


def prefix() -> list[str]:
    """The command before that of a device, from UNWEFT_SLURM_PREFIX."""
    return shlex.split(os.environ.get(PREFIX_VARIABLE, ""))
