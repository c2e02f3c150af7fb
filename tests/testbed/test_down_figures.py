"""`docker compose down`: the exported adapters answer as the last evaluated round did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.containers import ROOT, Bed
from tests.support.exported_accuracy import assert_as_evaluated

DEVICES = ["d0", "d1", "d2"]
LEARNS = "round.count=5000 round.local_steps=5 data.persons=2 data.batch=8 adapter.rank=4 eval.every=1"


def test_after_down_the_adapters_are_those_of_the_last_evaluation(tmp_path: Path, image: str) -> None:
    out = tmp_path / "results"
    out.mkdir()
    out.chmod(0o777)  # the user of the image writes into it
    bed = Bed(f"unweft-down-{os.getpid()}", UNWEFT_RESULTS=str(out), UNWEFT_SET=LEARNS)
    try:
        bed.up(devices=len(DEVICES))
        bed.until_round(60)
        bed.down()
        command = [sys.executable, "-c", "from emulation.cli import main; main()", "report", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert_as_evaluated(out, DEVICES)
    finally:
        bed.down("-v")
