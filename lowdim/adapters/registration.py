"""How a tuner becomes known to PEFT without a fork.

`peft.utils.register_peft_method` wants the method's name to be a member of the enum PeftType already, and PEFT offers
no way to add one (its issue 2273 asks for it); so the member is appended here.
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method


def register(name: str, config: type, model: type) -> None:
    """Make `name` ("deep_lora") a PEFT method with this configuration and tuner. Does nothing the second time.

    Raises ImportError if PEFT, or another package, has a method of that name by now.
    """
    if name.upper() not in PeftType.__members__:
        _append(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType(name.upper()))
    if known is None:
        register_peft_method(name=name, config_cls=config, model_cls=model)
    elif known is not config:
        raise ImportError(
            f"PEFT already has a method {name!r}, {known.__module__}.{known.__qualname__}, whose checkpoints are not "
            "ours: install peft<0.22, for which this version of lowdim was written, or import one of the two alone"
        )


def _append(name: str) -> None:
    """Add a member to the enum PeftType, with all that Enum keeps about one."""
    member: Any = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    member.__objclass__ = PeftType
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
