"""The tuner: puts Deep LoRA layers into a model and does what only a whole model can."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from ..undo import restored_on_error
from .combination import combine
from .config import DeepLoraConfig
from .layer import DeepLoraLinear

PLAIN = "__base__"
"""PEFT's name for the model without any adapter, in the adapter_names of a mixed batch."""


class DeepLoraModel(BaseTuner):
    """What `get_peft_model(model, DeepLoraConfig(...))` wraps."""

    prefix = "deep_lora_"
    tuner_layer_cls = DeepLoraLinear
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # lists of names, or a pattern

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, but an adapter that does not fit one of the layers is in none of them afterwards."""
        with restored_on_error(model):
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            except BaseException:
                for layer in self.modules():
                    if isinstance(layer, DeepLoraLinear) and adapter_name not in layer.active_adapters:
                        layer.delete_adapter(adapter_name)
                raise

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = peft_config
        assert isinstance(config, DeepLoraConfig)
        if isinstance(target, DeepLoraLinear):
            target.update_layer(adapter_name, config, layer=current_key)
            return
        quantization = get_quantization_kwargs(self)
        _check_kind(target, current_key, quantization)
        layer = DeepLoraLinear(target, adapter_name, config, layer=current_key, **quantization)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains only once it is made active
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: list[str] | None = None, **generation: Any
    ) -> Iterator[None]:
        """Hand each row's adapter to the layers; PEFT would drop a tuner's adapter_names without a word."""
        if adapter_names is None:
            yield
            return
        self._check_names(adapter_names)
        copies = max(generation.get(key) or 1 for key in ("num_beams", "num_return_sequences"))
        assign = partial(_assign, adapter_names=list(adapter_names), copies=copies)
        kinds = (DeepLoraLinear, AuxiliaryTrainingWrapper)
        hooks = [m.register_forward_pre_hook(assign, with_kwargs=True) for m in self.modules() if isinstance(m, kinds)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_names(self, adapter_names: list[str]) -> None:
        if self.training:
            raise ValueError("adapter_names in training mode: call model.eval() first, mixed batches are for inference")
        if unknown := set(adapter_names) - set(self.peft_config) - {PLAIN}:
            raise ValueError(f"adapter_names holds {sorted(unknown)}: take from {[*self.peft_config, PLAIN]}")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's, but safe_merge looks at all layers before it merges the first."""
        self._check_sums(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        self._check_sums(adapter_names, merge and safe_merge)
        unloaded: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        return unloaded

    def _check_sums(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        for layer in self.modules():
            if safe_merge and isinstance(layer, DeepLoraLinear):
                layer.check_sum(layer.active_adapters if adapter_names is None else adapter_names)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: Literal["linear", "svd"] = "linear",
        rank: int | None = None,
    ) -> None:
        """A new adapter whose change of every weight is sum_i weights_i Delta_i; see `combination.combine`."""
        combine(self, adapters, weights, adapter_name, combination_type, rank)


def _check_kind(target: nn.Module, name: str, quantization: dict[str, Any]) -> None:
    """Raise ValueError unless the module is a linear layer, plain or quantized."""
    if isinstance(target, NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"module {name!r} belongs to a torch.nn.MultiheadAttention, which reads its weight and never calls it, so "
            "an adapter would do nothing: choose others with target_modules, or exclude_modules=[...]"
        )
    if isinstance(target, (nn.Linear, Conv1D)):
        return
    backend = resolve_quantization_backend(target, **quantization)
    if backend is None or backend.layer_type != "linear":
        raise ValueError(
            f"module {name!r} is a {type(target).__name__}, and Deep LoRA adapts linear layers (torch.nn.Linear, "
            "quantized ones and transformers' Conv1D): choose others with target_modules, or exclude_modules=[...]"
        )


def _assign(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, adapter_names: list[str], copies: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook: one name for each row, repeated where generation has repeated the rows of the batch."""
    rows = len(args[0]) if args else len(adapter_names)
    if rows not in (len(adapter_names), copies * len(adapter_names)):
        raise ValueError(
            f"{len(adapter_names)} adapter_names for a batch in which {type(module).__name__} sees {rows} rows: give "
            f"one to each input, or {PLAIN!r} for none"
        )
    names = [name for name in adapter_names for _ in range(rows // len(adapter_names))]
    return args, {**kwargs, "adapter_names": names}
