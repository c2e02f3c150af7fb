"""`unweft churn kubernetes:NAMESPACE`, with a kubectl that records its arguments, and the manifests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from emulation.commands import churn
from emulation.testbed.kubernetes import INDEX, RUN_LABEL, Devices, device_of, returning
from tests.support.command_line import ROOT, unweft

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
MANIFESTS = ROOT / "deploy" / "kubernetes"
EXEC = "exec device-{0} --container device -- unweft churn /results"


def manifest(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / name).read_text())


def pod_of(index: int, phase: str = "Running") -> dict[str, Any]:
    """A pod as the Job of the manifest makes it."""
    template = manifest("job.yaml")["spec"]["template"]
    labels = {RUN_LABEL: "run-1", "controller-uid": "run-1", "batch.kubernetes.io/job-name": "device"}
    about = {
        "name": f"device-{index}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {**template["metadata"]["labels"], **labels, INDEX: str(index)},
        "annotations": {INDEX: str(index)},
    }
    index_again = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": _field(INDEX)}}}
    template["spec"]["containers"][0]["env"].append(index_again)  # as the controller of Jobs does
    spec = {**template["spec"], "nodeName": "node1", "hostname": f"device-{index}"}
    return {"metadata": about, "spec": spec, "status": {"phase": phase}}


def _field(annotation: str) -> str:
    return f"metadata.annotations['{annotation}']"


class Kubectl:
    """Three devices; the third has ended."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.made: dict[str, Any] = {}
        self.pods = [pod_of(0), pod_of(1), pod_of(2, "Failed")]

    def __call__(self, command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
        assert command[:3] == ["kubectl", "--namespace", "edge"]
        words = list(command[3:])
        if words[0] != "get":
            self.asked.append(" ".join(words))
        if "fails" in words:
            return subprocess.CompletedProcess(command, 1, "", "unweft: fails: does not run\nexit code 2\n")
        if words[0] == "create":
            self.made = json.loads(text)
        said = {"items": self.pods} if "pods" in words else {"spec": {"completions": 3}}
        return subprocess.CompletedProcess(command, 0, json.dumps(said), "")


@pytest.fixture
def kubectl(monkeypatch: Patch) -> Kubectl:
    fake = Kubectl()
    monkeypatch.setattr(churn, "Devices", lambda namespace: Devices(namespace, execute=fake))
    return fake


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("leave d0", [f"{EXEC.format(0)} leave d0"]),
        ("crash d1", [f"{EXEC.format(1)} crash d1"]),
        ("stall d0 d1 --seconds 0.01", [
            *(f"{EXEC.format(0)} stall d0", f"{EXEC.format(1)} stall d1"),
            *(f"{EXEC.format(0)} resume d0", f"{EXEC.format(1)} resume d1"),
        ]),
        ("leave d2", [f"{EXEC.format(0)} leave d2"]),  # nobody has confirmed it: another device delivers it
        ("join d3 d4", ['patch job device --patch {"spec": {"completions": 5, "parallelism": 5}}']),
        ("return d2", ["create --filename -"]),
    ],
)  # fmt: skip
def test_an_event_is_a_kubectl_command_for_each_pod(
    monkeypatch: Patch, kubectl: Kubectl, words: str, asked: list[str]
) -> None:
    assert unweft(monkeypatch, "churn", "kubernetes:edge", *words.split()) == 0
    assert kubectl.asked == asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("leave d9", "d9: not in edge; allowed: d0, d1, d2"),
        ("crash d2", "d2: its pod device-2 is Failed; allowed: Running"),
        ("join d7", "join: d7; allowed: the next ids, d3"),
        ("partition d0", "partition: not to pods; allowed: leave, retire, crash, stall, resume, join"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: Patch, kubectl: Kubectl, capsys: Capture, words: str, said: str
) -> None:
    assert unweft(monkeypatch, "churn", "kubernetes:edge", *words.split()) == 2
    assert said in capsys.readouterr().err and kubectl.asked == []


def test_the_error_of_unweft_in_the_pod_is_shown(
    monkeypatch: Patch, kubectl: Kubectl, capsys: Capture
) -> None:
    kubectl.pods[0]["metadata"]["name"] = "fails"
    assert unweft(monkeypatch, "churn", "kubernetes:edge", "leave", "d0") == 2
    assert "fails: does not run" in capsys.readouterr().err


def test_a_missing_kubectl_is_bad_input(monkeypatch: Patch, capsys: Capture, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unweft(monkeypatch, "churn", "kubernetes:edge", "leave", "d0") == 2
    assert "kubectl: not found" in capsys.readouterr().err


def test_a_device_returns_in_a_pod_of_its_own_under_its_id_in_the_same_run() -> None:
    before = pod_of(2, "Failed")
    made = returning("d2", before)
    names = {variable["name"]: variable.get("value") for variable in made["spec"]["containers"][0]["env"]}
    assert (names["UNWEFT_ID"], names["UNWEFT_RUN"]) == ("d2", "run-1")
    assert INDEX not in json.dumps(made) and "nodeName" not in made["spec"]
    assert made["metadata"]["labels"] == {
        "app.kubernetes.io/component": "device",
        "unweft/device": "d2",
    }
    again = returning("d2", {**made, "metadata": {**made["metadata"], "name": "device-d2-x"}})
    assert again["spec"]["containers"][0]["env"] == made["spec"]["containers"][0]["env"]
    assert device_of({"metadata": {**made["metadata"], "annotations": {}}}) == "d2"


def test_the_job_lets_no_device_come_back_and_starts_the_whole_cohort() -> None:
    job = manifest("job.yaml")["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimitPerIndex"] == 0
    given = {
        variable["name"]: variable.get("value")
        for variable in job["template"]["spec"]["containers"][0]["env"]
    }
    assert (
        given["UNWEFT_SET"] == f"devices.count={job['completions']}"
        and job["parallelism"] == job["completions"]
    )
