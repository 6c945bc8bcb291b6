"""States of bitsandbytes' 8-bit Adam (0.50: Adam8bit, AdamW8bit, their paged forms) taken over, and given back.

Its optimizer keeps for a parameter, uint8 of its shape and float32 by block of 256,

    M = qmap1[state1] absmax1,   V = qmap2[state2] absmax2,   step

with the signed and the unsigned dynamic map, or M and V in float32 for fewer than 4096 elements. In its state_dict()
all but the step lie one level deeper. With CODECS["dynamic"] nothing is computed: codes and scales are the same. In
`lowdim`'s optimizers they are a state's exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales, and step is a tensor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .blocks import Codec, Quantized
from .dynamic import Dynamic, dynamic_map
from .moments import Moments

DEEPER = "__bnb_optimizer_quant_state__"


@torch.no_grad()
def from_bitsandbytes(entry: Mapping[str, Any], codec: Moments) -> tuple[Quantized, Quantized]:
    """M and V of one parameter in our codec; the step stays in entry["step"].

    entry: of bitsandbytes' optimizer.state, or of the "state" in its state_dict(). It is not changed, nor shared.

    Raises ValueError for an entry without two moments, of another map, or of other blocks than 256.
    """
    flat = {**entry, **entry.get(DEEPER, {})}
    if missing := {"state1", "state2"} - flat.keys():
        raise ValueError(f"no {', '.join(sorted(missing))} among {sorted(flat)}: give one parameter's state of an Adam")
    return (
        _taken(flat, "1", Dynamic(signed=True), codec.first, root=False),
        _taken(flat, "2", Dynamic(signed=False), codec.second, root=codec.root),
    )


def _taken(flat: Mapping[str, Any], number: str, theirs: Dynamic, ours: Codec, *, root: bool) -> Quantized:
    values: Tensor = flat[f"state{number}"]
    if values.dtype == torch.uint8:
        given = dynamic_map(theirs.signed, values.device)
        if not torch.allclose(flat[f"qmap{number}"], given, rtol=1e-6, atol=0):
            raise ValueError(f"qmap{number} is not bitsandbytes' dynamic map: only states with that one can be read")
        state = Quantized(values, flat[f"absmax{number}"])
        theirs.check(state, values)
        if not root and isinstance(ours, Dynamic):
            return Quantized(state.codes.clone(), state.scales.clone())
        values = theirs.decode(state)
    return ours.encode(values.sqrt() if root else values)


@torch.no_grad()
def to_bitsandbytes(first: Quantized, second: Quantized, step: int, codec: Moments) -> dict[str, Any]:
    """The entry of bitsandbytes' optimizer.state for these moments, to be put into its state_dict()["state"].

    Raises ValueError if the moments are not this codec's.
    """
    entry: dict[str, Any] = {"step": step}
    for number, signed, state, ours in (("1", True, first, codec.first), ("2", False, second, codec.second)):
        ours.check(state, state.codes)
        root = codec.root and not signed
        if root or not isinstance(ours, Dynamic):
            values = ours.decode(state)
            state = Dynamic(signed).encode(values.square_() if root else values)
        entry[f"state{number}"], entry[f"absmax{number}"] = state.codes.clone(), state.scales.clone()
        entry[f"qmap{number}"] = dynamic_map(signed, state.codes.device).clone()
    return entry
