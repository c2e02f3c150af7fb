"""The array tasks of one run, through the commands of Slurm. Each is a life of a device (docs/deploy.md)."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from emulation.testbed.commands import run_to_end
from peers.errors import InputError

Execute = Callable[[Sequence[str], str], "subprocess.CompletedProcess[str]"]  # command, standard input
TIMEOUT_S = 60
FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "exit_code", "Reason", "NodeList")
WAITS = ("PENDING", "CONFIGURING")
RUNS = ("RUNNING", "STOPPED", "SUSPENDED", "SIGNALING", "RESIZING")  # STOPPED: by SIGSTOP, a stall
ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"),
    *("LAUNCH_FAILED", "PREEMPTED", "REVOKED"),
)
ENDED_ALREADY = re.compile(r"already comp|Invalid job id", re.IGNORECASE)


class SlurmFailed(Exception):
    """A command of Slurm failed. The message has the last line that it printed."""


def execute(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises InputError if it is not installed, SlurmFailed if it hangs."""
    try:
        return run_to_end(command, TIMEOUT_S, text)
    except FileNotFoundError:
        raise InputError(
            f"{command[0]}: not found; allowed: a machine with the commands of Slurm, such as a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmFailed(f"{command[0]}: no answer within {TIMEOUT_S} s") from None


@dataclass(frozen=True, slots=True)
class Task:
    """An array task, as squeue lists it."""

    state: str  # PENDING, RUNNING, COMPLETED, ...
    # exit status, or minus the signal that ended it; None: it has not ended, or Slurm ended it
    exit: int | None
    reason: str  # why it is pending
    node: str

    @property
    def waits(self) -> bool:
        return self.state in WAITS

    @property
    def runs(self) -> bool:
        return self.state in RUNS

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Slurm:
    """The jobs of one run, which have one name that no other run has."""

    name: str
    execute: Execute = field(default=execute, repr=False)

    def submit(self, script: str, count: int, options: Sequence[str] = ()) -> list[str]:
        """Submit an array of `count` tasks; returns their ids in order. Raises SlurmFailed.

        `script`: a batch script. It finds its index in SLURM_ARRAY_TASK_ID.
        """
        said = self._run("sbatch", "--parsable", *self._options(count, options), text=script)
        job = said.strip().splitlines()[-1].partition(";")[0]  # a cluster of a federation follows the number
        return [f"{job}_{index}" for index in range(count)]

    def check(self, script: str, count: int, options: Sequence[str] = ()) -> None:
        """Ask Slurm whether it would accept such an array; nothing is submitted. Raises SlurmFailed."""
        self._run("sbatch", "--test-only", *self._options(count, options), text=script)

    def _options(self, count: int, options: Sequence[str]) -> list[str]:
        return [f"--job-name={self.name}", f"--array=0-{count - 1}", *options]

    def signal(self, task: str, name: str, all_processes: bool = False) -> None:
        """Send a signal, such as SIGTERM, to the script of a task. A task that has ended is ignored.

        `all_processes`: also to the children of the script. Raises SlurmFailed.
        """
        whom = "--full" if all_processes else "--batch"
        try:
            self._run("scancel", whom, f"--signal={name.removeprefix('SIG')}", task)
        except SlurmFailed as error:
            if not ENDED_ALREADY.search(str(error)):
                raise

    def tasks(self) -> dict[str, Task]:
        """All tasks that Slurm knows, by id. Raises SlurmFailed.

        Slurm forgets a task some minutes after its end.
        """
        form = ",".join(f"{name}:|" for name in FIELDS)
        said = self._run("squeue", "--noheader", "--array", "--states=all", *self._mine(), f"--Format={form}")
        return dict(_task(line) for line in said.splitlines() if line.count("|") == len(FIELDS))

    def kill(self) -> None:
        """Cancel the tasks that wait, and kill the scripts of the others. Raises SlurmFailed.

        Other ways to cancel a task send it SIGTERM first, which a device would take for its leave.
        """
        self._run("scancel", *self._mine(), "--state=PENDING")
        self._run("scancel", *self._mine(), "--full", "--signal=KILL")

    def cancel(self) -> None:
        """Cancel all tasks, whatever their states. Raises SlurmFailed."""
        self._run("scancel", *self._mine())

    def _mine(self) -> tuple[str, str]:
        return f"--name={self.name}", f"--user={getpass.getuser()}"

    def _run(self, *command: str, text: str = "") -> str:
        done = self.execute(command, text)
        if done.returncode:
            said = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it said nothing"]
            raise SlurmFailed(said[-1] if said[-1].startswith(command[0]) else f"{command[0]}: {said[-1]}")
        return done.stdout


def _task(line: str) -> tuple[str, Task]:
    """The id and the state of a task, from a line of squeue."""
    job, index, state, code, reason, node = (word.strip() for word in line.split("|")[: len(FIELDS)])
    return f"{job}_{index}", Task(state, _exit(state, code), reason, node)


def _exit(state: str, code: str) -> int | None:
    """The exit status that Slurm reports.

    None: the task goes on, or Slurm ended it (a failure of the node, the time limit).
    """
    if state == "COMPLETED":
        return 0
    if state != "FAILED":
        return None
    return (
        os.waitstatus_to_exitcode(int(code)) or 1
    )  # a failed task without a status: Slurm could not start it
