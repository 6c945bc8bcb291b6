"""Loading that says what is wrong with a checkpoint, and leaves the model as it was."""

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from .undo import restored_on_error

REMEDY = "it was not written completely; take an earlier checkpoint or save the adapter again"


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    subfolder: str | None = None,
    **options: Any,
) -> PeftModel:
    """`PeftModel.from_pretrained` in a process that knows our tuners, for whole checkpoints only.

    model: without adapters, or a PeftModel, which gets one more, as by its load_adapter.
    folder: as `save_pretrained` wrote it, on this machine. options: as in PeftModel.from_pretrained: is_trainable, ...
    Raises ValueError if a file is missing or half-written, or does not fit the model, or the name is taken; then the
    model is as it was.
    """
    folder = Path(folder, subfolder or "")
    further = model if isinstance(model, PeftModel) else None
    if further is not None and adapter_name in further.peft_config:
        raise ValueError(f"the model has an adapter {adapter_name!r} already: give another adapter_name")
    _check_config(folder / CONFIG_NAME)
    path = folder / SAFETENSORS_WEIGHTS_NAME
    keys = _keys(path)
    with restored_on_error(model):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")  # said below, as an error
                if further is None:
                    loaded = PeftModel.from_pretrained(model, folder, adapter_name=adapter_name, **options)
                else:
                    further.load_adapter(folder, adapter_name, **options)
                    loaded = further
            _check_whole(loaded, path, adapter_name, keys)
        except BaseException as error:
            if further is not None and adapter_name in further.peft_config:
                further.delete_adapter(adapter_name)
            if isinstance(error, RuntimeError):
                raise ValueError(f"{path} does not fit the model, was it saved from another one? {error}") from error
            raise
    return loaded


def _check_whole(model: PeftModel, path: Path, adapter_name: str, keys: set[str]) -> None:
    wanted = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    if missing := sorted(set(wanted) - keys):
        raise ValueError(
            f"{path} lacks {missing[0]!r} ({len(missing)} parameters are missing): its configuration belongs to "
            "another adapter or model; save the adapter again"
        )


def _check_config(path: Path) -> None:
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: give the folder that save_pretrained wrote, and download it first if it is remote"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): {REMEDY}") from error


def _keys(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {REMEDY}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}): {REMEDY}") from error
