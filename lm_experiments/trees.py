"""Nested states <-> named tensors and JSON, exactly: optimizers, schedulers, random numbers. No pickle.

flatten puts each tensor under its path ("optimizer/state/0/exp_avg") and writes the rest as JSON, in which what JSON
lacks is a dict with one key: {"$tensor": [name, order]}, {"$float": bits}, {"$tuple": [...]}, {"$dict": [[k, v], ...]}.
"""

import logging
import math
import random
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Generator: TypeAlias = torch.Generator | np.random.Generator
MAPPINGS = {f"${kind.__name__}": kind for kind in (dict, OrderedDict, Counter)}  # MultiStepLR keeps a Counter
LOG = logging.getLogger(__name__)


def flatten(tree: Any) -> tuple[dict[str, Tensor], dict[str, JSON]]:
    """Tensors by name, and {"tree": all else}: what `checkpoints.save` takes, and `unflatten` turns back.

    tree: None, bool, int, float, str, tensors, NumPy arrays and scalars, in lists, tuples, dicts (with any of these
        for keys), OrderedDicts and Counters. Floats keep their bits, tensors their memory layout if it is dense
        (one that overlaps itself or has gaps becomes contiguous), and what is one tensor in two places stays one.

    The tensors are views of those given: save them before the next step. Raises ValueError with the path of anything
    else: functions, subclasses of tensors, sparse, quantised and meta tensors, dtypes that safetensors does not know.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {"tree": _encode(tree, "", tensors, {})}


def unflatten(tensors: Mapping[str, Tensor], state: Mapping[str, JSON]) -> Any:
    """The tree that `flatten` was given. Tensors come on the device of those given, without requires_grad."""
    return _decode(state["tree"], tensors, {})


def _encode(value: Any, path: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> JSON:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:  # finite ones have a decimal text that gives the same bits
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if kind is np.ndarray or isinstance(value, np.generic):
        name = _named(_from_numpy(value, path), path, tensors)
        return {"$array" if kind is np.ndarray else "$scalar": name}
    if isinstance(value, Tensor):
        return {"$tensor": _encode_tensor(storable(value, path), path, tensors, names)}
    if kind in (list, tuple):
        items = [_encode(item, f"{path}/{place}", tensors, names) for place, item in enumerate(value)]
        return {"$tuple": items} if kind is tuple else items
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: _encode(item, f"{path}/{key}", tensors, names) for key, item in value.items()}
    if f"${kind.__name__}" in MAPPINGS and kind in MAPPINGS.values():
        pairs = ((key, f"{path}/{key}", item) for key, item in value.items())
        return {
            f"${kind.__name__}": [[_encode(k, p, tensors, names), _encode(v, p, tensors, names)] for k, p, v in pairs]
        }
    raise ValueError(
        f"{path or 'the tree'} is a {kind.__module__}.{kind.__qualname__}, {value!r:.60}: keep None, bool, int, float, "
        "str, tensors and NumPy arrays in lists, tuples and dicts, from which it can be made again"
    )


def _encode_tensor(tensor: Tensor, path: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> list[JSON]:
    """Its name, and the order of its axes in memory, in which it is stored: a product may round by the layout."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    if not tensor.permute(order).is_contiguous():
        order = list(range(tensor.ndim))
    place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    if place not in names or not tensor.numel():  # empty ones are all at address 0
        names[place] = _named(tensor.permute(order), path, tensors)
    return [names[place], list(order)]


def _named(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Keys 1 and "1", or "a/b" and "a" with "b", have one path: the second gets a number."""
    name, count = path.removeprefix("/"), 1
    while name in tensors:
        count += 1
        name = f"{path.removeprefix('/')}#{count}"
    tensors[name] = tensor
    return name


def _from_numpy(value: Any, path: str) -> Tensor:
    try:
        return storable(torch.from_numpy(np.array(value, order="C")), path)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a NumPy value of dtype {value.dtype} has no tensor to match: convert it") from error


def storable(tensor: Tensor, path: str) -> Tensor:
    """The tensor without its graph, or ValueError if safetensors could not keep all of it."""
    whole = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not whole or tensor.is_meta or tensor.is_quantized or not _known(tensor.dtype):
        raise ValueError(
            f"{path}: a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device}: give a plain "
            "dense tensor (full_tensor() of a DTensor, to_dense(), dequantize(), view_as_real())"
        )
    return tensor.detach().resolve_conj().resolve_neg()


@cache
def _known(dtype: torch.dtype) -> bool:
    try:
        return bool(safetensors.torch.save({"": torch.empty(0, dtype=dtype)}))
    except KeyError:
        return False


def _decode(value: Any, tensors: Mapping[str, Tensor], made: dict[Any, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, made) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if not mark.startswith("$"):
        return {key: _decode(item, tensors, made) for key, item in value.items()}
    content = value[mark]
    if mark == "$float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if mark == "$tuple":
        return tuple(_decode(item, tensors, made) for item in content)
    if mark in MAPPINGS:
        pairs = {_decode(key, tensors, made): _decode(item, tensors, made) for key, item in content}
        return MAPPINGS[mark](pairs)
    name, order = content if mark == "$tensor" else (content, ())
    if mark not in ("$tensor", "$array", "$scalar") or name not in tensors:
        raise ValueError(f"{value!r:.80} in a state: no such tensor, or a mark that this version does not know")
    if mark == "$tensor":
        return made.setdefault((name, *order), tensors[name].permute([order.index(axis) for axis in range(len(order))]))
    array = tensors[name].cpu().numpy().copy()
    return array if mark == "$array" else array[()]


def plain(value: Any, path: str, tuples: bool = False) -> Any:
    """A copy of what JSON keeps exactly; ValueError with the path of anything else. tuples: take them for lists."""
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(item, f"{path}/{key}", tuples) for key, item in value.items()}
    if isinstance(value, list | tuple if tuples else list):
        return [plain(item, f"{path}/{place}", tuples) for place, item in enumerate(value)]
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError(
        f"{path} = {value!r:.60} ({type(value).__name__}): JSON keeps None, bool, int, finite floats, str, lists, and "
        "dicts whose keys are str; convert it, or put it through flatten"
    )


def random_state(**generators: Generator) -> dict[str, Any]:
    """The states of the global generators of torch (CPU, every CUDA device), NumPy and Python, and of those given."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - the global one, which libraries draw from
        "python": random.getstate(),
        "given": {
            name: generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state
            for name, generator in generators.items()
        },
    }


def restore_random_state(state: Mapping[str, Any], **generators: Generator) -> None:
    """Set all to what `random_state` gave. Raises ValueError if other generators are given than then."""
    if set(generators) != set(state["given"]):
        raise ValueError(f"generators {sorted(generators)}, saved were {sorted(state['given'])}: give the same")
    torch.set_rng_state(state["torch"].cpu())
    then, now = len(state["cuda"]), torch.cuda.device_count()
    if then == now:
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])
    else:
        LOG.warning("%d CUDA devices then, %d now: their random numbers are not those of the saved run", then, now)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(state["given"][name].cpu())
        else:
            generator.bit_generator.state = state["given"][name]
