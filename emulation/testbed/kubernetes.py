"""The devices of a Kubernetes Job, through the kubectl command line (docs/deploy.md).

Each index of the Job is a device. A device that returns is a pod of its own, with the specification of its
earlier pod: an index that has ended stays ended.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emulation.testbed.commands import run_to_end
from peers.errors import InputError

Execute = Callable[[Sequence[str], str], "subprocess.CompletedProcess[str]"]  # command, standard input
Manifest = dict[str, Any]
JOB, CONTAINER, RUN = "device", "device", "/results"
COMPONENT = "app.kubernetes.io/component=device"
INDEX = "batch.kubernetes.io/job-completion-index"
ID_VARIABLE, RUN_VARIABLE = "UNWEFT_ID", "UNWEFT_RUN"
RUN_LABEL, ID_LABEL = "batch.kubernetes.io/controller-uid", "unweft/device"
OF_THE_JOB = ("controller-uid", "job-name")  # the end of labels by which a Job takes pods for its own
TIMEOUT_S = 120


class KubectlFailed(Exception):
    """A kubectl command failed. The message has the last line that it printed."""


def execute(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises InputError if kubectl is not installed, KubectlFailed if it hangs."""
    try:
        return run_to_end(command, TIMEOUT_S, text)
    except FileNotFoundError:
        raise InputError("kubectl: not found; a target kubernetes:NAMESPACE needs it") from None
    except subprocess.TimeoutExpired:
        raise KubectlFailed(f"kubectl: no answer within {TIMEOUT_S} s") from None


@dataclass(frozen=True, slots=True)
class Pod:
    """The newest pod of one device."""

    name: str
    phase: str  # Pending, Running, Succeeded, Failed
    manifest: Manifest = field(repr=False)

    @property
    def runs(self) -> bool:
        return self.phase == "Running"


@dataclass(frozen=True)
class Devices:
    """The devices in a namespace of the present cluster of kubectl."""

    namespace: str
    execute: Execute = field(default=execute, repr=False)

    def pods(self) -> dict[str, Pod]:
        """The newest pod of each device, by id. Raises KubectlFailed."""
        said = json.loads(self._run("get", "pods", "--selector", COMPONENT, "--output", "json"))
        found = sorted(said["items"], key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        return {device_of(pod): _pod(pod) for pod in found}

    def churn(self, pod: Pod, *words: str) -> None:
        """Run `unweft churn` within the pod of a device. Raises KubectlFailed with its message."""
        self._run("exec", pod.name, "--container", CONTAINER, "--", "unweft", "churn", RUN, *words)

    def join(self, devices: Sequence[str]) -> None:
        """Add devices, whose ids must be the next ones. Raises InputError and KubectlFailed."""
        job = json.loads(self._run("get", "job", JOB, "--output", "json"))
        known = int(job["spec"]["completions"])
        more = known + len(devices)  # completions and parallelism change together
        expected = [f"d{number}" for number in range(known, more)]
        if list(devices) != expected:
            raise InputError(f"join: {', '.join(devices)}; allowed: the next ids, {', '.join(expected)}")
        patch = json.dumps({"spec": {"completions": more, "parallelism": more}})
        self._run("patch", "job", JOB, "--patch", patch)

    def bring_back(self, device: str, pod: Pod) -> None:
        """Start a device that has ended again, under its id. Raises KubectlFailed."""
        self._run("create", "--filename", "-", text=json.dumps(returning(device, pod.manifest)))

    def _run(self, *words: str, text: str = "") -> str:
        done = self.execute(["kubectl", "--namespace", self.namespace, *words], text)
        if done.returncode:
            said = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it said nothing"]
            raise KubectlFailed(f"kubectl {' '.join(words[:2])} …: {_own_words(said)}")
        return done.stdout


def device_of(pod: Manifest) -> str:
    """The id of the device of a pod."""
    about = pod["metadata"]
    return str(about["labels"].get(ID_LABEL) or f"d{about['annotations'][INDEX]}")


def returning(device: str, pod: Manifest) -> Manifest:
    """A pod in which a device returns, with the specification of its earlier pod.

    It has no label by which the Job takes pods for its own.
    """
    labels = pod["metadata"]["labels"]
    spec = copy.deepcopy(pod["spec"])
    spec.pop("nodeName", None)
    run = labels.get(RUN_LABEL) or _value(spec, RUN_VARIABLE)
    for container in spec["containers"]:
        given = {ID_VARIABLE: device, RUN_VARIABLE: run}
        kept = [variable for variable in container["env"] if variable["name"] not in given]
        first = [{"name": name, "value": value} for name, value in given.items()]
        container["env"] = [*first, *(variable for variable in kept if not _of_the_index(variable))]
    kept_labels = {name: value for name, value in labels.items() if not name.endswith(OF_THE_JOB)}
    kept_labels.pop(INDEX, None)
    about = {"generateName": f"{JOB}-{device}-", "labels": {**kept_labels, ID_LABEL: device}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}


def _pod(pod: Manifest) -> Pod:
    phase = "Ending" if pod["metadata"].get("deletionTimestamp") else str(pod["status"]["phase"])
    return Pod(str(pod["metadata"]["name"]), phase, pod)


def _value(spec: Manifest, name: str) -> str:
    found = [variable.get("value") for variable in spec["containers"][0]["env"] if variable["name"] == name]
    return str(found[0])


def _of_the_index(variable: Manifest) -> bool:
    """Whether a variable comes from the index of a Job, which a pod of its own does not have."""
    return INDEX in json.dumps(variable)


def _own_words(lines: Sequence[str]) -> str:
    """The error of unweft in the pod, or else the last line."""
    own = [line for line in lines if line.startswith("unweft: ")]
    return own[-1].removeprefix("unweft: ") if own else lines[-1]
