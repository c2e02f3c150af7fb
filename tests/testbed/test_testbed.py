"""A testbed from `docker compose up` to `down -v`. The tests depend on each other and run in this order."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulation.testbed.docker import DockerFailed
from tests.support.containers import IMAGE, ROOT, Bed, until

FOUR = ("d0", "d1", "d2", "d3")


def gone(bed: Bed, device: str, kind: str, *witnesses: str) -> bool:
    """Whether each witness has recorded the end of a device with this kind."""
    return all(
        any((e["peer"], e["kind"]) == (device, kind) for e in bed.events(witness, "peer_gone"))
        for witness in witnesses
    )


def test_after_up_all_devices_are_members(bed: Bed) -> None:
    bed.until_agreed(*FOUR)
    slots = {status["slot"] for status in bed.statuses().values()}
    assert len(slots) == 4


def test_the_loss_falls(bed: Bed) -> None:
    bed.until_round(40)
    losses = [float(line["loss"]) for line in bed.lines("d0", "metrics")]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("options", [("--profile", "*"), ("-f", str(ROOT / "deploy" / "swarm.yml"))])
def test_the_compose_files_are_valid(bed: Bed, options: tuple[str, ...]) -> None:
    """Also the parts that no test starts: slow devices, devices with a GPU, the swarm."""
    bed.project.compose(*options, "config", "--quiet")


def test_containers_have_few_rights(bed: Bed) -> None:
    """They run without root, on a read-only file system, with limits on memory and CPU."""
    about = json.loads(bed.docker("inspect", bed.containers()["d0"].id))[0]
    assert about["Config"]["User"] == "10001:10001"
    assert about["HostConfig"]["ReadonlyRootfs"] and about["HostConfig"]["CapDrop"] == ["ALL"]
    assert about["HostConfig"]["Memory"] > 0 and about["HostConfig"]["NanoCpus"] > 0


def test_the_health_check_asks_the_loop_itself(bed: Bed) -> None:
    """A process that hangs is not healthy."""
    device = bed.containers()["d1"].id
    ask = (
        "exec",
        device,
        "python",
        "-c",
        "from peers.runtime.health import *; ask(os.environ[VARIABLE], 0.5)",
    )
    bed.docker(*ask)
    signal_device(bed, device, "SIGSTOP")
    try:
        with pytest.raises(DockerFailed):
            bed.docker(*ask)
    finally:
        signal_device(bed, device, "SIGCONT")
    bed.docker(*ask)


def signal_device(bed: Bed, container: str, name: str) -> None:
    """Send a signal to the device process itself, because init does not pass on all signals."""
    code = (
        "import os, psutil, signal\n"
        "for process in psutil.process_iter():\n"
        "    words = process.cmdline()\n"
        "    if words and 'python' in words[0] and words[-1] == 'device':\n"
        f"        os.kill(process.pid, signal.{name})"
    )
    bed.docker("exec", container, "python", "-c", code)


def test_a_pause_is_no_crash(bed: Bed) -> None:
    paused = bed.containers()["d2"]
    bed.project.pause(paused)
    time.sleep(1.5)  # so much silence must be tolerated
    bed.project.unpause(paused)
    bed.until_round(bed.round() + 3)
    bed.until_agreed(*FOUR)
    assert not any(gone(bed, "d2", "crash", witness) for witness in ("d0", "d1", "d3"))


def test_a_container_without_the_key_is_refused(bed: Bed) -> None:
    before = sum(bed.status("d0")["security_events"].values())
    network = bed.project.network()
    with_own_key = (
        "unweft keys new /tmp/keys && exec unweft device --id stranger --scenario /scenarios/testbed.toml "
        "--out /tmp/out --seeds tcp://device:7000 --keys /tmp/keys"
    )
    options = ("--network", network, "-v", f"{ROOT}/scenarios:/scenarios:ro", "--entrypoint", "sh")
    stranger = bed.docker("run", "-d", *options, IMAGE, "-c", with_own_key).strip()
    try:
        until(
            lambda: sum(bed.status("d0")["security_events"].values()) > before,
            "a handshake that was refused",
        )
        assert bed.agreed(*FOUR)
    finally:
        bed.docker("rm", "-f", "-v", stranger)


def test_a_container_that_is_added_joins(bed: Bed) -> None:
    bed.scale(5)
    bed.until_agreed(*FOUR, "d4")
    joined = bed.round()
    until(lambda: int(bed.status("d4")["round"]) > joined, "d4 trains with the others")
    assert bed.containers()["d0"].live  # no container was started again


def test_after_sigterm_all_devices_delete_the_leaver(bed: Bed) -> None:
    container = bed.containers()["d4"]
    bed.docker("stop", "--time", "60", container.id)
    bed.until_agreed(*FOUR)
    assert gone(bed, "d4", "leave", *FOUR)
    for device in FOUR:
        (deleted,) = [e for e in bed.events(device, "deleted") if e["peer"] == "d4"]
        assert deleted["sha256_before"] != deleted["sha256_after"]
    ended = {c.id: c.exit for c in bed.project.containers()}
    assert ended[container.id] == 0


def test_after_sigkill_all_devices_detect_the_crash(bed: Bed) -> None:
    bed.docker("kill", bed.containers()["d3"].id)
    bed.until_agreed("d0", "d1", "d2")
    assert gone(bed, "d3", "crash", "d0", "d1", "d2")


def test_a_container_that_is_started_again_returns_with_its_id(bed: Bed) -> None:
    bed.docker("start", bed.containers()["d3"].id)
    bed.until_agreed(*FOUR)
    assert bed.status("d3")["incarnation"] == 1


def test_a_container_that_is_disconnected_and_connected_is_a_member_again(bed: Bed) -> None:
    container = bed.containers()["d1"]
    address = bed.status("d1")["address"]
    bed.project.disconnect(container)
    until(lambda: "d1" not in bed.status("d0")["members"], "d0 notices")
    bed.project.connect(container)
    bed.until_agreed(*FOUR)
    assert bed.status("d1")["address"] == address
    bed.until_round(bed.round() + 3)


def test_churn_finds_the_device_in_its_container(bed: Bed) -> None:
    code = "from emulation.cli import main; main()"
    command = [sys.executable, "-c", code, "churn", bed.name, "crash", "d2"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    bed.until_agreed("d0", "d1", "d3")
    (noted,) = [json.loads(line) for line in bed.read("churn.jsonl").splitlines()]
    assert (noted["kind"], noted["device"]) == ("crash", "d2")


def test_down_ends_the_run_and_deletes_no_device(bed: Bed) -> None:
    left = {device: len(bed.events(device, "peer_gone")) for device in ("d0", "d1", "d3")}
    bed.down()
    for device, before in left.items():
        assert len(bed.events(device, "ended")) == 1 and len(bed.events(device, "peer_gone")) == before
        assert bed.events(device, "exported") and bed.events(device, "finished")
    about = json.loads(bed.read("adapters/d0/unweft.json"))
    assert {block["device"] for block in about["blocks"]} == {"d0", "d1", "d3"}


def test_the_report_has_the_events(bed: Bed) -> None:
    shown = bed.project.compose("run", "--rm", "report")
    assert "report: /results/report.html" in shown
    found = json.loads(bed.read("summary.json"))
    kinds = [(event["kind"], event["device"]) for event in found["events"]]
    for happened in (("join", "d4"), ("leave", "d4"), ("crash", "d3"), ("return", "d3"), ("crash", "d2")):
        assert happened in kinds
    assert found["accuracy"]["devices"] == ["d0", "d1", "d3"]
    assert found["budget"]["violations"] == 0
    assert len(bed.read("report.html")) > 10_000


def test_results_can_be_copied_from_the_volume(bed: Bed, tmp_path: Path) -> None:
    """With the command of docs/deploy.md, when no container is left."""
    mount = ("-v", f"{bed.name}_results:/results:ro")
    packed = ("run", "--rm", "--network", "none", *mount, "--entrypoint", "tar", IMAGE, "-C", "/results")
    listed = bed.docker(*packed, "-cf", "/dev/null", "-v", ".")
    assert "./report.html" in listed and "./adapters/d0/adapter_model.safetensors" in listed


def test_down_v_leaves_nothing(bed: Bed) -> None:
    bed.down("-v")
    label = f"label=com.docker.compose.project={bed.name}"
    assert bed.docker("ps", "-aq", "--filter", label) == ""
    assert bed.docker("network", "ls", "-q", "--filter", label) == ""
    assert bed.docker("volume", "ls", "-q", "--filter", label) == ""
    assert bed.dangling() == bed.dangling_before
