"""A Slurm cluster on this machine: a controller, and one slurmd a node. It ends completely.

`python -m tests.support.slurm_cluster COMMAND...` starts a cluster of three nodes, runs the command with it,
and ends it. All daemons listen on the loopback interface only. Each node has one GPU in Slurm's books; its
device file is /dev/null.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from emulation.launch.ports import free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PACKAGES = "slurm-wlm, munge"  # Debian's
START_S = 60.0
CONF = """
ClusterName=unweft
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU,CR_LLN
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
KillWait=3
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=edge Nodes=ALL Default=YES MaxTime=01:00:00 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Gres=gpu:1 "
    "State=UNKNOWN"
)
GPUS = "Name=gpu File=/dev/null\n"


def missing() -> str | None:
    """Why no cluster can be started here; None if it can."""
    absent = [name for name in NEEDED if _path(name) is None]
    if absent:
        return f"no Slurm: {', '.join(absent)} not found (Debian's packages: {PACKAGES})"
    return None if os.getuid() == 0 else "no Slurm: its daemons are started as root"


class Cluster:
    """A running cluster. `variables`: the environment of commands that use it."""

    def __init__(self, folder: Path, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
        self.folder, self._daemons = folder, daemons

    @property
    def variables(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "UNWEFT_LISTEN": "tcp://127.0.0.1:0",
        }

    def run(self, *command: str) -> str:
        """Run a command with this cluster; returns what it prints."""
        done = subprocess.run(
            command, env=self.variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def kill_node(self, name: str) -> None:
        """A node fails: its slurmd and all its tasks are killed at once."""
        tasks = [process for process in self.tasks() if f"SLURMD_NODENAME={name}" in _environment(process)]
        stepds = [parent for task in tasks if (parent := task.parent()) and "slurmstepd" in parent.name()]
        _kill([psutil.Process(self._daemons[name].pid), *stepds, *tasks])
        self._daemons[name].wait()

    def tasks(self) -> list[psutil.Process]:
        """The processes of all tasks."""
        found = [(process, _environment(process)) for process in _using(self.folder)]
        return [process for process, words in found if any(w.startswith("SLURM_JOB_ID=") for w in words)]


@contextmanager
def cluster(nodes: int = 3, cpus: int = 4) -> Iterator[Cluster]:
    """Start a cluster and end it. `cpus`: tasks that a node takes."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="unweft-slurm-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        names = [f"edge{number}" for number in range(nodes)]
        _configure(folder, names, cpus)
        daemons: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(_end_all, daemons, folder)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        _start(daemons, "munged", _munged(folder), environment)
        _until(lambda: (folder / "munge.socket").exists(), "munged", folder)
        _start(daemons, "slurmctld", [_needed("slurmctld"), "-D", "-c"], environment)
        for name in names:
            _start(daemons, name, [_needed("slurmd"), "-D", "-N", name], environment)
        found = Cluster(folder, daemons)
        _until(lambda: _ready(found, nodes), "all nodes idle", folder)
        yield found


def _configure(folder: Path, names: Sequence[str], cpus: int) -> None:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    controller, *ports = free_ports(1 + len(names))
    listed = [NODE.format(name=name, port=port, cpus=cpus) for name, port in zip(names, ports, strict=True)]
    conf = CONF.format(folder=folder, port=controller, user="root", nodes="\n".join(listed))
    (folder / "slurm.conf").write_text(conf, encoding="utf-8")
    (folder / "gres.conf").write_text(GPUS, encoding="utf-8")


def _munged(folder: Path) -> list[str]:
    return [
        *(_needed("munged"), "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid"),
        *(f"--seed-file={folder}/munged.seed", f"--log-file={folder}/munged.log"),
    ]


def _start(
    daemons: dict[str, subprocess.Popen[bytes]], name: str, command: list[str], environment: Mapping[str, str]
) -> None:
    quiet = subprocess.DEVNULL
    daemons[name] = subprocess.Popen(
        command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )


def _ready(found: Cluster, nodes: int) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=found.variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.split().count("idle") == nodes


def _until(true: Callable[[], object], what: str, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not true():
        if time.monotonic() > deadline:
            logs = [path.read_text(errors="replace")[-600:] for path in sorted(folder.glob("*.log"))]
            raise AssertionError(f"never: {what}\n" + "\n".join(logs))
        time.sleep(0.2)


def _end_all(daemons: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    """Kill all daemons, and what they have started."""
    for process in reversed(daemons.values()):
        process.terminate()  # the controller ends its helper, slurmscriptd
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()
    _kill(_using(folder))


def _using(folder: Path) -> list[psutil.Process]:
    """Processes with this cluster's configuration in their environment."""
    wanted = f"SLURM_CONF={folder / 'slurm.conf'}"
    return [process for process in psutil.process_iter() if wanted in _environment(process)]


def _environment(process: psutil.Process) -> list[str]:
    """The environment of a process. (psutil reads nothing of a process that has changed its title.)"""
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _needed(name: str) -> str:
    found = _path(name)
    assert found is not None, name
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the block
    with cluster() as started:
        sys.exit(subprocess.run(sys.argv[1:] or ["bash"], env=started.variables, check=False).returncode)
