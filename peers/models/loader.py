"""Loading of the base model: `tiny`, a local folder or a Hugging Face name; frozen, in float32."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError

import torch
from huggingface_hub import constants, try_to_load_from_cache
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from peers.config import ModelConfig
from peers.errors import InputError
from peers.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny"
TINY_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTABLE = (nn.Linear, nn.Conv2d, Conv1D)


@dataclass(frozen=True)
class Pretrained:
    """The result of a registry entry. target_modules: the default; None: PEFT's for the model type."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target_modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A base model, ready to be adapted: float32, eval mode, no parameter requires a gradient.

    sha256: over names, shapes and bytes of the weights; peers compare it. target_modules: names as in PEFT:
    a module's full name, or its end after a dot.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    sha256: str
    target_modules: tuple[str, ...]


ModelFactory = Callable[[ModelConfig], Pretrained]

models: Registry[ModelFactory] = Registry("model.name")
_kept: dict[str, LoadedModel] = {}


@models.add("tiny")
def load_tiny(config: ModelConfig) -> Pretrained:
    """The shipped model (docs/tiny.md). It needs no download."""
    loaded = load_pretrained(str(TINY_FOLDER))
    return Pretrained(loaded.model, loaded.tokenizer, TINY_TARGETS)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load, freeze and hash the model of a scenario, on `config.device`, or use the one of `keep_model`.

    Raises InputError for a model that cannot be loaded, unknown target modules or a missing device.
    """
    device = pick_device(config.device)
    loaded = _kept.pop(_key(config), None) or _load(config)
    return replace(loaded, model=loaded.model.to(device))


def keep_model(config: ModelConfig) -> None:
    """Load a model before a fork. `load_model` returns it in each child, and the children share its memory.

    One thread: a process that forks must have no other thread. On the CPU: a GPU does not survive a fork.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _kept[_key(config)] = _load(config)
    finally:
        torch.set_num_threads(threads)


def _key(config: ModelConfig) -> str:
    return config.model_copy(update={"device": "cpu", "threads": 1}).model_dump_json()


def _load(config: ModelConfig) -> LoadedModel:
    """Load, freeze and hash on the CPU."""
    make = models.get(config.name) if config.name in models else lambda c: load_pretrained(c.name)
    made = make(config)
    model = made.model.float().eval().requires_grad_(False)
    model.config.use_cache = False  # saves memory: no text is generated, so no keys and values are reused
    targets = _target_modules(model, config, made.target_modules)
    return LoadedModel(model, made.tokenizer, config.name, weights_sha256(model), targets)


def load_pretrained(name: str) -> Pretrained:
    """Model and tokenizer of a local folder, or of a name in the hub or its cache. Raises InputError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(name, str(folder), offline=True)
    if not fullmatch(r"[\w.-]*\w(/\w[\w.-]*)?", name):
        raise InputError(f"model.name: folder {name!r} does not exist; {_allowed_names()}")
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):  # the cached model needs no network and stays the same
        with suppress(InputError):  # an incomplete download: the hub completes it below
            return _checked(name, str(Path(cached).parent), offline=True)
    obstacle = _hub_obstacle()
    if obstacle:
        raise InputError(
            f"model.name: {name!r} is no folder, not (whole) in the Hugging Face cache, and the hub is "
            f"out of reach ({obstacle}); {_allowed_names()}"
        )
    return _checked(name, name, offline=False)


def _checked(name: str, source: str, offline: bool) -> Pretrained:
    try:
        with _no_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, local_files_only=offline, output_loading_info=True
            )
            tokenizer = _tokenizer(source, offline)
    # Damaged files raise errors of many libraries (JSON, safetensors, tokenizers).
    except Exception as error:
        reason = _first_line(error)
        raise InputError(f"model.name: cannot load {name!r} ({reason}); {_allowed_names()}") from error
    if info["missing_keys"]:
        # transformers fills them with random numbers, which differ between devices.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"model.name: {name!r} lacks the weights {missing}; allowed: causal language models")
    return Pretrained(model, tokenizer)


def _tokenizer(source: str, offline: bool) -> PreTrainedTokenizerBase:
    """The tokenizer as saved. AutoTokenizer would rebuild some generic ones by model type (qwen2)."""
    declared = get_tokenizer_config(source, local_files_only=offline).get("tokenizer_class")
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader = PreTrainedTokenizerFast if generic else AutoTokenizer
    return loader.from_pretrained(source, local_files_only=offline)


def _hub_obstacle() -> str | None:
    """Why the hub is out of reach; None if it may answer. The hub's own client would retry for 45 s."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=10).close()
    except HTTPError:
        return None  # it answered
    except URLError as error:
        # The hub's client may trust certificates that this probe does not.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error)
    return None


def _allowed_names() -> str:
    return f"allowed: {', '.join(models.names())}, a local folder, or a Hugging Face name"


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers: many devices would fill the terminal."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weights_sha256(model: nn.Module) -> str:
    """Hash of name, shape, dtype and bytes of all weights and saved buffers, sorted by name."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _target_modules(
    model: PreTrainedModel, config: ModelConfig, default: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The scenario's choice, else the model's default, else PEFT's for the type. Raises InputError."""
    adaptable = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    chosen = config.target_modules or default or _peft_default(model, adaptable)
    allowed = f"allowed: {', '.join(sorted({name.rpartition('.')[2] for name in adaptable}))}"
    if not chosen:
        raise InputError(
            f"model.target_modules: PEFT has no default for {model.config.model_type!r}: name them; {allowed}"
        )
    for target in chosen:
        if not any(name == target or name.endswith(f".{target}") for name in adaptable):
            raise InputError(f"model.target_modules: {config.name!r} has no module {target!r}; {allowed}")
    return tuple(chosen)


def _peft_default(model: PreTrainedModel, adaptable: list[str]) -> tuple[str, ...]:
    default: list[str] | str = PEFT_DEFAULTS.get(model.config.model_type, [])
    if isinstance(default, str):  # a pattern on full names
        return tuple(name for name in adaptable if fullmatch(default, name))
    return tuple(default)


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda:N`, or `auto`: the first GPU, else the CPU. Raises InputError for a missing GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    number = name.removeprefix("cuda:")
    if not name.startswith("cuda:") or not number.isdecimal():
        raise InputError(f"model.device: {name!r} is not known; allowed: auto, cpu, cuda:N")
    if int(number) >= count:
        found = ", ".join(f"cuda:{i}" for i in range(count)) or "no CUDA device"
        raise InputError(f"model.device: {name!r} is not there; this machine has {found}; allowed: auto, cpu")
    return torch.device(name)
