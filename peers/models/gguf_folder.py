"""Models in GGUF files: converted once to a folder that transformers and plain PEFT load.

The conversion needs the package `gguf` and takes some seconds to minutes. Its result stays in the cache
folder under the hash of the file: every later start loads the folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peers.errors import InputError, describe
from peers.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = ".gguf"
STORED = torch.float16  # 11 bits: more than the quantised weights of a GGUF file have


def cache_folder() -> Path:
    """The folder of converted models: $UNWEFT_CACHE, else `unweft` in the user's cache folder."""
    own = os.environ.get("UNWEFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(base) / "unweft").expanduser().absolute() / "models"


def find_gguf(path: Path) -> Path | None:
    """The GGUF file at `path`: the file itself, or the only one of a folder without a configuration.

    Raises InputError for a folder with several such files.
    """
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"model.name: {str(path)!r} has several GGUF files ({names}); allowed: one of them")
    return found[0] if found else None


def converted_folder(file: Path) -> Path:
    """The folder of the converted model. Converts the file if the cache does not have it yet.

    Raises InputError without the package `gguf`, for an unknown architecture and for a damaged file.
    """
    folder = cache_folder() / f"{file.stem}-{_sha256(file)[:16]}"
    if not (folder / "config.json").exists():
        _convert(file, folder)
    return folder


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"model.name: {str(file)!r} cannot be read ({error.strerror})") from None


def _convert(file: Path, folder: Path) -> None:
    if find_spec("gguf") is None:
        raise InputError(
            f"model.name: {str(file)!r} needs the package gguf; allowed: pip install 'unweft[llm]', "
            "or a folder in the format of Hugging Face"
        )
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        print(f"unweft: note: {file.name} is converted once, into {folder}", file=sys.stderr)
        with quiet(), redirect_stderr(io.StringIO()):  # tqdm of the conversion cannot be switched off
            _write(file, unfinished)
        if not folder.exists():  # another process may have finished earlier
            unfinished.rename(folder)
    except Exception as error:  # of many libraries, for files that are damaged or of an unknown architecture
        raise InputError(
            f"model.name: {str(file)!r} cannot be converted ({describe(error)}); allowed: a GGUF file of an "
            f"architecture that transformers reads, and room in {folder.parent}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(file: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer. The configuration comes last: it marks a whole folder."""
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer.save_pretrained(folder)
    save_file(_weights(model), folder / "model.safetensors", {"format": "pt"})
    config = model.config
    config.__dict__.pop("quantization_config", None)  # transformers would refuse to load or save it
    config.dtype = STORED
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    """The tensors of the model without those that are tied to another one."""
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    )
    return {n: t.to(STORED).contiguous() for n, t in model.state_dict().items() if n not in tied}
