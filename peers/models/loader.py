"""Loading of the base model: by a registered name, a local folder, a GGUF file or a Hugging Face name;
frozen.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import HTTPError, URLError

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from peers.config import ModelConfig
from peers.errors import InputError
from peers.models import vision
from peers.models.checks import modules_in_use, no_causal_model
from peers.models.dtypes import DTYPES, in_dtype
from peers.models.gguf_folder import converted_folder, find_gguf
from peers.models.quiet import quiet
from peers.models.smollm2 import smollm2_folder
from peers.models.target_modules import target_modules
from peers.registry import Registry
from peers.tasks import (
    AnyExample,
    Batch,
    Example,
    ImageExample,
    ImageFormat,
    encode,
    encode_images,
    encoding_notes,
    lacks_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny"
SMALL_RESNET_FOLDER = TINY_FOLDER.with_name("small-resnet")
TINY_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Pretrained:
    """The result of a registry entry. target_modules: the default; None: PEFT's for the model type.

    A classifier of images has an image_format in place of a tokenizer. Its default are all its modules.
    folder: from which plain transformers loads the same model; None: from the name in the scenario.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    target_modules: tuple[str, ...] | None = None
    image_format: ImageFormat | None = None
    folder: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A base model, ready to be adapted: `model.dtype`, eval mode, no parameter requires a gradient.

    name: as in the scenario; a local folder with its whole path; the folder of a converted model.
    sha256: over names, shapes and bytes of the weights; peers compare it. target_modules: names as in PEFT:
    a module's full name, or its end after a dot.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    sha256: str
    target_modules: tuple[str, ...]
    image_format: ImageFormat | None = None

    def encode(self, examples: Sequence[AnyExample], max_length: int) -> Batch:
        """The examples as tensors that this model reads. max_length: of a text, in tokens.

        Raises InputError for examples of another kind, and as `encode` and `encode_images` do.
        """
        if self.image_format is not None:
            return encode_images(_only(examples, ImageExample, self.name), self.image_format)
        return encode(_only(examples, Example, self.name), self.tokenizer, max_length)

    def notes(self, parts: Mapping[str, tuple[Sequence[AnyExample], Batch]], max_length: int) -> list[str]:
        """Lines that say what `encode` did to the data beside encoding them, by whose data they are."""
        if self.image_format is not None:
            return []
        no_end = any(lacks_end(_only(e, Example, self.name), self.tokenizer) for e, _ in parts.values())
        return encoding_notes({whose: batch for whose, (_, batch) in parts.items()}, no_end, max_length)


Kind = TypeVar("Kind", Example, ImageExample)


def _only(examples: Sequence[AnyExample], kind: type[Kind], name: str) -> list[Kind]:
    found = [example for example in examples if isinstance(example, kind)]
    if len(found) < len(examples):
        text = kind is Example
        raise InputError(
            f"data.kind: the data are {'images' if text else 'text'}, and model.name = {name!r} is "
            f"a {'language model' if text else 'classifier of images'}; allowed: data and a model of one kind"
        )
    return found


ModelFactory = Callable[[ModelConfig], Pretrained]

models: Registry[ModelFactory] = Registry("model.name")
_kept: dict[str, LoadedModel] = {}
_patterns: dict[str, LoadedModel] = {}  # of `load_once`


@models.add("tiny")
def load_tiny(config: ModelConfig) -> Pretrained:
    """The shipped model (docs/tiny.md). It needs no download."""
    loaded = load_pretrained(str(TINY_FOLDER))
    return Pretrained(loaded.model, loaded.tokenizer, TINY_TARGETS)


@models.add("small-resnet")
def load_small_resnet(config: ModelConfig) -> Pretrained:
    """The shipped classifier of images (docs/vision.md). It needs no download."""
    return load_pretrained(str(SMALL_RESNET_FOLDER), DTYPES[config.dtype])


@models.add("smollm2")
def load_smollm2(config: ModelConfig) -> Pretrained:
    """SmolLM2-135M-Instruct (smollm2.py)."""
    folder = str(smollm2_folder())
    return replace(load_pretrained(folder, DTYPES[config.dtype]), folder=folder)


def load_model(config: ModelConfig) -> LoadedModel:
    """Load, freeze and hash the model of a scenario, on `config.device`, or use the one of `keep_model`
    or a copy of the one of `load_once`.

    Raises InputError for a model that cannot be loaded, unknown target modules or a missing device.
    """
    device = pick_device(config.device)
    loaded = _kept.pop(_key(config), None) or _copy(config) or _load(config)
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


def load_once(config: ModelConfig) -> None:
    """Load a model once for this process: from now on `load_model` returns a copy of it, which is faster."""
    key = _key(config)
    if key not in _patterns:
        _patterns[key] = _kept.pop(key) if key in _kept else _load(config)


def _copy(config: ModelConfig) -> LoadedModel | None:
    pattern = _patterns.get(_key(config))
    return None if pattern is None else replace(pattern, model=deepcopy(pattern.model))


def _key(config: ModelConfig) -> str:
    return config.model_copy(update={"device": "cpu", "threads": 1}).model_dump_json()


def _load(config: ModelConfig) -> LoadedModel:
    """Load, freeze and hash on the CPU."""
    dtype = DTYPES[config.dtype]
    make = models.get(config.name) if config.name in models else lambda c: load_pretrained(c.name, dtype)
    made = make(config)
    if made.image_format is not None and config.dtype != "fp32":
        raise InputError(f"model.dtype: {config.dtype!r} with a classifier of images; allowed: 'fp32'")
    model = in_dtype(made.model, dtype).eval().requires_grad_(False)
    for part in (model.config, model.config.get_text_config()):
        part.use_cache = False  # saves memory: no text is generated, so no keys and values are reused
    default = made.target_modules
    if made.image_format is None:
        used = modules_in_use(model, made.tokenizer, config.name)
    else:
        used = vision.modules_in_use(model, made.image_format, config.name)
        default = default or tuple(vision.adaptable(model, used))
    targets = target_modules(model, config, default, used)
    name, digest = made.folder or _absolute(config.name), weights_sha256(model)
    return LoadedModel(model, made.tokenizer, name, digest, targets, made.image_format)


def _absolute(name: str) -> str:
    """A folder with its whole path, so that an adapter finds it from anywhere; other names as they are."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if name not in models and folder.is_dir() else name


def load_pretrained(name: str, dtype: torch.dtype = torch.float32) -> Pretrained:
    """Model and tokenizer of a folder, a GGUF file, or a name in the hub or its cache. Raises InputError."""
    folder = Path(name).expanduser()
    file = find_gguf(folder)
    if file is not None:
        source = str(converted_folder(file))
        return replace(_checked(name, source, dtype, offline=True), folder=source)
    if folder.is_dir():
        return _checked(name, str(folder), dtype, offline=True)
    if not fullmatch(r"[\w.-]*\w(/\w[\w.-]*)?", name):
        raise InputError(f"model.name: {name!r} does not exist; {_allowed_names()}")
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):  # the cached model needs no network and stays the same
        with suppress(InputError):  # an incomplete download: the hub completes it below
            return _checked(name, str(Path(cached).parent), dtype, offline=True)
    obstacle = _hub_obstacle()
    if obstacle:
        raise InputError(
            f"model.name: {name!r} is no folder, not (whole) in the Hugging Face cache, and the hub is "
            f"out of reach ({obstacle}); {_allowed_names()}"
        )
    return _checked(name, name, dtype, offline=False)


def _checked(name: str, source: str, dtype: torch.dtype, offline: bool) -> Pretrained:
    try:
        with quiet():
            config = _config(name, source, offline)
            if vision.is_classifier(config):
                return Pretrained(*vision.load_classifier(name, source, offline, config))
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                local_files_only=offline,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = _tokenizer(name, source, offline)
    except InputError:
        raise
    # Damaged files raise errors of many libraries (JSON, safetensors, tokenizers).
    except Exception as error:
        reason = _first_line(error)
        raise InputError(f"model.name: cannot load {name!r} ({reason}); {_allowed_names()}") from error
    if config.is_encoder_decoder:  # the class of its decoder alone would load
        raise no_causal_model(name, "it is an encoder-decoder model")
    if info["missing_keys"]:
        # transformers fills them with random numbers, which differ between devices.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"model.name: {name!r} lacks the weights {missing}; allowed: causal language models")
    return Pretrained(model, tokenizer)


def _config(name: str, source: str, offline: bool) -> Any:
    """The configuration of a model. Raises InputError, and runs no code, if the model brings its own code."""
    found = PreTrainedConfig.get_config_dict(source, local_files_only=offline)[0]
    own = {"AutoConfig": CONFIG_MAPPING_NAMES, "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for auto, known in own.items():
        _refuse_code(name, found.get("auto_map"), auto, (known.get(found.get("model_type")),))
    return AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)


def _tokenizer(name: str, source: str, offline: bool) -> PreTrainedTokenizerBase:
    """The tokenizer as saved. AutoTokenizer would rebuild some generic ones by model type (qwen2)."""
    found = get_tokenizer_config(source, local_files_only=offline)
    declared = found.get("tokenizer_class")
    auto_map = found.get("auto_map")
    named = {"AutoTokenizer": auto_map} if isinstance(auto_map, list) else auto_map  # of transformers 4.0
    _refuse_code(name, named, "AutoTokenizer", (declared,) if hasattr(transformers, str(declared)) else ())
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader = PreTrainedTokenizerFast if generic else AutoTokenizer
    return loader.from_pretrained(source, local_files_only=offline, trust_remote_code=False)


def _refuse_code(name: str, auto_map: object, auto: str, known: Collection[str | None]) -> None:
    """Raises InputError if `auto_map` names another class than transformers has (`known`).

    Many models of the hub still name the code from which transformers took its class of the same name.
    """
    named = auto_map.get(auto) if isinstance(auto_map, dict) else None
    for reference in named if isinstance(named, list) else [named]:
        if reference is not None and str(reference).rpartition(".")[2] not in known:
            raise InputError(
                f"model.name: {name!r} brings code of its own ({auto}: {reference}), which is not run; "
                "allowed: a plugin that loads it (docs/extending.md)"
            )


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
    return f"allowed: {', '.join(models.names())}, a local folder, a GGUF file, or a Hugging Face name"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weights_sha256(model: nn.Module) -> str:
    """Hash of name, shape, dtype and bytes of all weights and saved buffers, sorted by name."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
