"""One linear layer with Deep LoRA adapters: y = W_0 x + b + s left C ... C right^T x."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ...narrow import Narrow
from .config import DeepLoraConfig
from .start import start, width


class DeepLoraLinear(nn.Module, BaseTunerLayer):
    """A Linear or Conv1D layer, plain or quantized, with any number of adapters, each kept as left, cores and right^T.

    layer: its name in the model, which seeds the random start and stands in error messages.
    """

    adapter_layer_names = ("deep_lora_right", "deep_lora_cores", "deep_lora_left")
    other_param_names = ("scaling", "gamma")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DeepLoraConfig, *, layer: str, **quantization: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layer_name = layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        sizes: Any = _get_in_out_features(self.get_base_layer())
        self.in_features, self.out_features = sizes
        self.transposed = isinstance(self.get_base_layer(), Conv1D)  # whose weight is (inputs, outputs)
        self.deep_lora_right = nn.ParameterDict()  # (width, inputs): right^T
        self.deep_lora_cores = nn.ModuleDict()  # lists of (width, width), C_1 first
        self.deep_lora_left = nn.ParameterDict()  # (outputs, width)
        self.scaling: dict[str, float] = {}
        self.gamma: dict[str, float] = {}  # of compressed adapters alone
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}  # ours: PEFT's default is shared by all layers
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, layer=layer)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs), whichever way round the weight is stored."""
        return self.out_features, self.in_features

    def update_layer(
        self, adapter_name: str, config: DeepLoraConfig, *, layer: str, inference_mode: bool = False, **_: Any
    ) -> None:
        """Add an adapter at its random start; ValueError if its rank does not fit."""
        factors = start(config, self.shape, layer)
        self.deep_lora_right[adapter_name] = nn.Parameter(factors.right.mT.contiguous())
        self.deep_lora_cores[adapter_name] = nn.ParameterList(nn.Parameter(core) for core in factors.cores)
        self.deep_lora_left[adapter_name] = nn.Parameter(factors.left)
        self.scaling[adapter_name] = 1.0 if config.alpha is None else config.alpha / width(config, self.shape, layer)
        if config.form == "compressed":
            self.set_gamma(adapter_name, config.gamma)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_gamma(self, adapter_name: str, gamma: float) -> None:
        """The rate of left and right relative to the cores'; at 0 they are frozen, and stay so under set_adapter.

        Where the cores do not train, left and right do not either.
        """
        self.gamma[adapter_name] = gamma
        frozen = () if gamma else ("deep_lora_right", "deep_lora_left")
        self.frozen_peft_weight_names[adapter_name] = frozen
        trains = any(core.requires_grad for core in self.cores(adapter_name))
        for factor in self.outer(adapter_name):
            factor.requires_grad_(trains and gamma > 0)

    def outer(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The first and the last factor, right^T and left."""
        return self.deep_lora_right[adapter_name], self.deep_lora_left[adapter_name]

    def cores(self, adapter_name: str) -> list[nn.Parameter]:
        """C_1, ..., C_L of a compressed adapter, the L - 2 factors between first and last of another."""
        held = self.deep_lora_cores[adapter_name]
        assert isinstance(held, nn.ParameterList)
        return list(held)

    def factors(self, adapter_name: str) -> Narrow:
        """The adapter as a narrow network, without its scaling; shares memory with the parameters."""
        right, left = self.outer(adapter_name)
        return Narrow(left, tuple(self.cores(adapter_name)), right.mT)

    @torch.no_grad()
    def set_factors(self, adapter_name: str, factors: Narrow) -> None:
        """Overwrite the parameters in place, so that an optimizer that holds them goes on with them."""
        right, left = self.outer(adapter_name)
        held = (*self.cores(adapter_name), right, left)
        new = (*factors.cores, factors.right.mT, factors.left)
        if shapes := [(tuple(n.shape), tuple(h.shape)) for h, n in zip(held, new, strict=True) if h.shape != n.shape]:
            raise ValueError(
                f"a factor of shape {shapes[0][0]} for one of {shapes[0][1]} in adapter {adapter_name!r}: give the "
                "factors of an adapter with the same configuration"
            )
        for old, factor in zip(held, new, strict=True):
            old.copy_(factor)

    def folded(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """right^T (width, inputs) and s left C_L ... C_1 (outputs, width): LoRA's two factors.

        The second in single precision at least, also under autocast: products of L small cores leave half's range.
        """
        right, left = self.outer(adapter_name)
        with torch.autocast(left.device.type, enabled=False):
            chain = [_single(factor) for factor in (left, *reversed(self.cores(adapter_name)))]
            top = torch.linalg.multi_dot(chain) if len(chain) > 1 else chain[0]
            return right, self.scaling[adapter_name] * top

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The change of the weight, laid out like it, in single precision at least."""
        right, top = self.folded(adapter_name)
        with torch.autocast(top.device.type, enabled=False):
            delta = top @ _single(right)
        return delta.mT if self.transposed else delta

    def increment(self, adapter_name: str, x: Tensor) -> Tensor:
        """What the adapter adds to the output, at the cost of a LoRA adapter of its width."""
        right, top = self.folded(adapter_name)
        x = self._cast_input_dtype(x, right.dtype)
        return functional.linear(functional.linear(x, right), top.to(right.dtype))

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The adapted output; adapter_names gives one adapter, or "__base__", to each row of the batch."""
        if adapter_names is not None and self.merged:
            raise ValueError(
                f"adapter_names with {self.merged_adapters} merged into the weight: call unmerge_adapter() first"
            )
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._mixed(result, x, adapter_names)
        total = result
        for name in self.active_adapters:
            if name in self.deep_lora_left:
                total = total + self.increment(name, x)
        return total.to(result.dtype)

    def _mixed(self, result: Tensor, x: Tensor, adapter_names: list[str]) -> Tensor:
        for name in dict.fromkeys(adapter_names):
            if name in self.deep_lora_left:
                rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
                result = result.index_add(0, rows, self.increment(name, x[rows]).to(result.dtype))
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters (by default the active ones) to the weight; safe_merge refuses a sum that is not finite."""
        if safe_merge:
            self.check_sum(self.active_adapters if adapter_names is None else adapter_names)
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.deep_lora_left:
                self.set_base_weight(self._sum(self._weight(), name))
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what was merged, the last first; exact up to the rounding of the weight's precision."""
        while self.merged_adapters:
            self.set_base_weight(self._sum(self._weight(), self.merged_adapters.pop(), sign=-1))

    def check_sum(self, adapter_names: list[str]) -> None:
        """Raise ValueError if adding these adapters to the weight, one after the other, makes it NaN or infinite."""
        total: Tensor | None = None
        for name in adapter_names:
            if name in self.deep_lora_left and name not in self.merged_adapters:
                total = self._sum(self._weight() if total is None else total, name)
                if not torch.isfinite(total).all():
                    raise ValueError(
                        f"adapter {name!r} makes the weight of {self.layer_name!r} NaN or infinite, so it was not "
                        "merged: go back to a checkpoint from before it diverged"
                    )

    def _weight(self) -> Tensor:
        """The base weight, not quantized.

        On some CPUs bitsandbytes packs 4-bit weights at the first evaluation; PEFT reads them as if it had not. Their
        state_dict unpacks them.
        """
        base = self.get_base_layer()
        if getattr(getattr(getattr(base, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            base.state_dict()
        return self.get_base_weight()

    @torch.no_grad()
    def _sum(self, weight: Tensor, adapter_name: str, sign: int = 1) -> Tensor:
        """A weight plus an adapter, computed in single precision at least and rounded to the weight's."""
        delta = self.get_delta_weight(adapter_name)
        return (weight.to(delta.dtype) + sign * delta.to(weight.device)).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every form is a product of two factors, so always."""
        return True

    def extra_repr(self) -> str:
        """The kind of quantization, where there is one."""
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return f"deep_lora.{super().__repr__()}"


def _single(factor: Tensor) -> Tensor:
    """In single precision at least."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))
