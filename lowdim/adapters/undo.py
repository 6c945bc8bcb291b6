"""A model is changed in whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Puts the model's submodules and what of it trains back to what they were, if an error is raised inside."""
    children = {module: dict(module._modules) for module in model.modules()}
    training = {parameter: parameter.requires_grad for parameter in model.parameters()}
    wrapped = "peft_config" in vars(model)
    try:
        yield
    except BaseException:
        for module, before in children.items():
            module._modules.clear()
            module._modules.update(before)
        for parameter, flag in training.items():
            parameter.requires_grad_(flag)
        if not wrapped:
            vars(model).pop("peft_config", None)
        raise
