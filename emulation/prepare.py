"""`python -m emulation.prepare`: what the devices of a container testbed find when they start.

Run once by the service `setup`, before them: the network key, unless there is one; the scenario, resolved, in
the results; what an earlier run left there goes aside. It decides nothing for the devices and is gone when
they start. It touches nothing while devices are there: `docker compose up` may come at any time.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from emulation import epoch
from emulation.addresses import resolve
from emulation.scenario import dump, load
from peers.errors import InputError
from transport import keys

ASIDE = "earlier"


def prepare(scenario: Path, overrides: list[str], run: Path, keys_folder: Path, seeds: str) -> str:
    """Make all of it ready; returns what was done. Raises InputError for a scenario that cannot be."""
    loaded = load(scenario, overrides)
    new_key = not (keys_folder / keys.NETWORK_FILE).exists()
    if new_key:
        keys.generate(keys_folder)
    if (run / "scenario.toml").exists() and resolve(seeds):
        return "devices are running: their run goes on"
    _put_aside(run)
    (run / "scenario.toml").write_text(dump(loaded), encoding="utf-8")
    epoch.write(run)
    return f"{loaded.name}: ready for {loaded.devices.count} devices" + (
        ", with a new key" if new_key else ""
    )


def _put_aside(run: Path) -> None:
    """What is there goes to earlier/<when>: figures of two runs are never mixed."""
    run.mkdir(parents=True, exist_ok=True)
    found = [path for path in run.iterdir() if path.name != ASIDE]
    if not found:
        return
    target = run / ASIDE / time.strftime("%Y%m%d-%H%M%S")
    target.mkdir(parents=True)
    for path in found:
        path.rename(target / path.name)


def main() -> int:
    """Everything comes from UNWEFT_ variables, as for `unweft device`."""
    settings = os.environ
    try:
        said = prepare(
            Path(settings["UNWEFT_SCENARIO"]),
            shlex.split(settings.get("UNWEFT_SET", "")),
            Path(settings["UNWEFT_OUT"]),
            Path(settings["UNWEFT_KEYS"]),
            settings["UNWEFT_SEEDS"],
        )
    except InputError as error:
        print(f"unweft: {error}", file=sys.stderr)
        return 2
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
