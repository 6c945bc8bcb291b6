"""Pretrained language models: the fetched ones, a local folder, or any name on the Hugging Face Hub.

Weights come as safetensors only, code never: what transformers itself does not know is refused. HF_HUB_OFFLINE=1 keeps
it to what lies in the Hub's cache.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from lm_experiments.assets import ASSETS, cache, fetch

FETCHED = ("minilm", "smollm2")
"""What ./run assets brings: all-MiniLM-L6-v2 (encoder) and SmolLM2-135M-Instruct (causal)."""
NOTE = "origin.json"


def load(
    name: str,
    *,
    classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained model, in evaluation mode on the CPU, and its tokenizer, which always can pad.

    name: "minilm", "smollm2", a folder that save_pretrained wrote, or "org/name" on the Hub, "@revision" behind it.
    classes: None for a causal language model, 1 for a regression head, k for a head of k classes. A head that the
    checkpoint lacks, or has at another width, is new, drawn from `seed` alone.
    layers: only the first so many; not a model that anyone trained. dropout: one rate for every dropout that the
    config knows; None leaves the config's.
    Raises ConnectionError if the Hub does not give it, FileNotFoundError for a folder without a model, ValueError else.
    """
    _check(classes, dtype, dropout)
    where, revision = _located(name)
    asked: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with _quiet(), _explained(name):
        config = AutoConfig.from_pretrained(where, **asked)
        tokenizer = AutoTokenizer.from_pretrained(where, **asked)
    _adapt(config, name, classes, layers, dropout)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:  # without it a classifier cannot find the last token of a padded text
        config.pad_token_id = tokenizer.pad_token_id
    auto = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    asked |= {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": classes is not None}
    with _quiet(), _explained(name), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # transformers draws new heads from the global generator
        loaded: Any = auto.from_pretrained(where, config=config, output_loading_info=True, **asked)
    model, info = loaded
    _check_whole(name, model, info, classes)
    return model, tokenizer


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a place on the Hub. Raises as `load` does."""
    where, revision = _located(name)
    with _quiet(), _explained(name):
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)


def is_causal(name: str) -> bool:
    """Whether a model was pretrained to continue text, and so can answer by words. Raises as `load` does."""
    where, revision = _located(name)
    with _quiet(), _explained(name):
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    return _continues_text(config)


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in float32, made once of the fetched GGUF file, whose weights are 4-bit.

    The dequantised numbers are kept as they are; only a grid of 16 values per block of 32 weights remains of the
    original ones, so results for this model are not results for the Hub's SmolLM2-135M-Instruct.
    """
    source = fetch("smollm2")
    (origin,) = ASSETS["smollm2"].hashes.values()
    folder = cache() / "smollm2-float32"
    if folder.is_dir():
        _check_conversion(folder, origin)
        return folder
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".smollm2-") as temporary:
        made = Path(temporary) / "model"
        _convert(source, made)
        weights = {path.name: _sha256(path) for path in sorted(made.glob("*.safetensors"))}
        note = {"gguf": origin, "transformers": transformers_version, "weights": weights}
        (made / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its folder is as good
                raise
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # otherwise transformers 5 refuses to save it
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # the folder is renamed into place: what it holds must be on the disk before
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _check_conversion(folder: Path, origin: str) -> None:
    try:
        note = json.loads((folder / NOTE).read_text())
        sound = note["gguf"] == origin and all(_sha256(folder / file) == sha for file, sha in note["weights"].items())
    except (OSError, ValueError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"{folder} is not what {NOTE} in it says: delete the folder; it is made anew at the next call")


def _located(name: str) -> tuple[str, str | None]:
    """A folder or an id on the Hub, and the revision."""
    if name in FETCHED:
        return str(smollm2() if name == "smollm2" else fetch(name)), None
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
        return str(folder), None
    hub = re.fullmatch(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", name)
    if hub is None:
        known = ", ".join(FETCHED)
        raise FileNotFoundError(
            f"no model {name!r}: give {known}, an existing folder, or org/name[@revision] of the Hub"
        )
    return hub["id"], hub["revision"]


def _adapt(config: PreTrainedConfig, name: str, classes: int | None, layers: int | None, dropout: float | None) -> None:
    if classes is None:
        if not _continues_text(config):
            held = ", ".join(config.architectures or ["no architecture"])
            raise ValueError(f"{name} holds {held}, not a causal language model: give `classes`, or take smollm2")
    else:
        config.num_labels = classes
        config.problem_type = "regression" if classes == 1 else "single_label_classification"
    if layers is not None:
        _truncate(config, name, layers)
    if dropout is not None:
        rates = [key for key, value in config.to_dict().items() if _is_dropout(key, value)]
        if not rates:
            raise ValueError(f"{name} has no dropout to set: leave `dropout` out")
        for key in rates:
            setattr(config, key, dropout)


def _continues_text(config: PreTrainedConfig) -> bool:
    return bool(set(config.architectures or []) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def _is_dropout(key: str, value: object) -> bool:
    return ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float | int) and value is not True


def _truncate(config: PreTrainedConfig, name: str, layers: int) -> None:
    there = config.num_hidden_layers
    if not 1 <= layers <= there:
        raise ValueError(f"layers = {layers}: {name} has {there}; take 1 to {there}")
    config.num_hidden_layers = layers
    if getattr(config, "num_decoder_layers", None) is not None:  # of T5, which counts them apart
        config.num_decoder_layers = min(layers, config.num_decoder_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _check(classes: int | None, dtype: torch.dtype, dropout: float | None) -> None:
    if classes is not None and classes < 1:
        raise ValueError(f"classes = {classes}: take None (language model), 1 (regression) or the number of classes")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype}: weights are trained in floating point; take float32, bfloat16 or float16")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: it is the share of units left out; take 0 <= dropout < 1")


def _check_whole(name: str, model: PreTrainedModel, info: dict[str, Any], classes: int | None) -> None:
    """Nothing but a new head, and a pooler before it, may be missing from the checkpoint."""
    missing = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    body = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if classes is None or (key.startswith(body) and "pooler" not in key))
    if lost:
        raise ValueError(f"{name} lacks {len(lost)} weights of its own config, {lost[0]} first: get the model again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' table of missing and surplus weights: `_check_whole` judges them."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What transformers raises when it cannot have a model, as what to do."""
    try:
        yield
    except OSError as error:
        if Path(name).expanduser().is_dir():
            raise FileNotFoundError(f"{name} is not a whole model folder with safetensors: {error}") from error
        raise ConnectionError(
            f"could not get {name} from the Hub: {error}\nIs the name right? Connect, or unset HF_HUB_OFFLINE, "
            f"if set; or give a local folder; or take {' or '.join(FETCHED)}, which ./run assets brings."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
