"""The model that trains: frozen weights with an adapter of a method, or the whole model; and who learns how fast."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_experiments.runs import FineTune
from lowdim.adapters import DeepLoraConfig, deep_lora_parameter_groups, initialize_deep_lora_weights
from lowdim.optimizers import GaLoreAdamW
from lowdim.optimizers import parameter_groups as projected_groups

FORMS = {"compressed": "compressed", "random": "compressed", "narrow": "narrow", "wide": "wide"}
HEADS = ("classifier", "score", "classification_head")  # of BERT, Llama and T5
QUERY_VALUE = ["query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v"]
"""The projections of BERT, Llama, DistilBERT and T5."""
GAP = 50
"""Steps from one subspace of GaLore's to the next."""
Loss = Callable[[nn.Module, Any], Tensor]


@torch.no_grad()
def centre(model: nn.Module, mean: float) -> None:
    """Let a new regression head start at the mean of what it is to predict, if it has a bias."""
    layers = [m for m in model.get_submodule(str(head_of(model))).modules() if isinstance(m, nn.Linear)]
    if layers[-1].bias is not None:
        layers[-1].bias.fill_(mean)


def adapted(model: PreTrainedModel, spec: FineTune, batch: dict[str, Tensor], loss: Loss) -> nn.Module:
    """The model with the spec's adapter, the compressed one aligned with the gradient of one batch.

    For galore it has none: the weights that an adapter would change train themselves, and the head as ever.

    Raises ValueError if the model has no layers of that kind, or the adapter does not fit.
    """
    if spec.method == "full":
        return model
    if spec.method == "galore":
        return _bare(model, {f"{name}.weight" for name in targets(model, spec)})
    head = head_of(model)
    config = _config(spec, targets(model, spec), [head] if head else None)
    with warnings.catch_warnings():  # PEFT 0.21 still reads transformers' former name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        wrapped: nn.Module = get_peft_model(model, config)
    for parameter in wrapped.parameters():  # PEFT copies the head in the precision of the frozen weights
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if spec.method == "compressed":
        initialize_deep_lora_weights(wrapped, batch, loss)
    return wrapped


def _bare(model: PreTrainedModel, chosen: set[str]) -> PreTrainedModel:
    """The model, of which these parameters and the head train, in float32."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or _of_head(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def optimizer(model: nn.Module, spec: FineTune) -> torch.optim.Optimizer:
    """AdamW, or GaLore's as its authors have it; GaLore's alpha is 1, since lr alone counts where nothing else trains.

    Zhao et al. 2024, arXiv 2403.03507.
    """
    groups = parameter_groups(model, spec)
    if spec.method == "galore":
        return GaLoreAdamW(groups, eps=spec.eps, refresh="exact", moments="keep", stagger=False)
    return torch.optim.AdamW(groups, eps=spec.eps, weight_decay=0.0)


def parameter_groups(model: nn.Module, spec: FineTune) -> list[dict[str, Any]]:
    """Groups for the optimizer: the head at head_lr, a compressed adapter's outer factors at gamma lr, all else at lr.

    galore: what is not the head has the key `rank`, but for layers of `rank` or fewer inputs or outputs.
    """
    head = {id(p) for name, p in model.named_parameters() if p.requires_grad and _of_head(name)}
    if spec.method in FORMS:
        groups = deep_lora_parameter_groups(model, spec.lr)
    elif spec.method == "galore":
        named = projected_groups(model, rank=spec.rank, target=_is_body, update_proj_gap=GAP, scale=1.0)
        groups = [{**group, "params": [p for _, p in group["params"]], "lr": spec.lr} for group in named]
    else:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": spec.lr}]
    groups = [{**group, "params": [p for p in group["params"] if id(p) not in head]} for group in groups]
    groups.append({"params": [p for p in model.parameters() if id(p) in head], "lr": spec.head_lr})
    return [group for group in groups if group["params"]]


def frozen_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """An adapter's own tensors that do not train: outer factors at gamma = 0, which the first gradient has chosen."""
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    return {
        f"{name}.{inner}": parameter
        for name, layer in layers.items()
        for inner, parameter in layer.named_parameters()
        if inner.split(".")[0] in layer.adapter_layer_names and not parameter.requires_grad
    }


def trainable(model: nn.Module) -> dict[str, int]:
    """Numbers of what trains: in the adapter (or in the body itself), and in the head."""
    sizes = [(_of_head(name), p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return {"body": sum(n for head, n in sizes if not head), "head": sum(n for head, n in sizes if head)}


def _of_head(name: str) -> bool:
    return any(part in HEADS for part in name.split("."))


def _is_body(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not _of_head(name)


def head_of(model: nn.Module) -> str | None:
    """The name of a classification model's new layer; None of one that continues text."""
    return next((name for name in HEADS if hasattr(model, name)), None)


def targets(model: nn.Module, spec: FineTune) -> list[str]:
    """Full names of the layers that get the adapter: linear ones of the body, without the head and the vocabulary's."""
    head = {head_of(model), "lm_head"}
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[0] not in head]
    if spec.layers == "attention":
        names = [name for name in names if name.rpartition(".")[2] in QUERY_VALUE]
    if not names:
        raise ValueError(f"{spec.model} has no layers of the kind {spec.layers!r}: take layers = 'all'")
    return names


def _config(spec: FineTune, targets: list[str], heads: list[str] | None) -> PeftConfig:
    shared: dict[str, Any] = {"target_modules": targets, "modules_to_save": heads}
    if spec.method == "lora":
        return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, **shared)  # type: ignore[arg-type]
    return DeepLoraConfig(
        form=FORMS[spec.method],  # type: ignore[arg-type]
        rank=spec.rank,
        depth=spec.depth,
        scale=spec.scale,
        gamma=spec.gamma,
        seed=spec.seed,
        **shared,
    )


def autocast(spec: FineTune, device: torch.device) -> torch.autocast:
    """Products in bfloat16, if the spec says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.precision == "bf16")
