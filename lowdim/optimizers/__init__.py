"""Full-parameter training through low-rank gradients: GaLore, Fira, APOLLO, Frugal."""

from .backward import galore_backward
from .families import Apollo, ApolloMini, FiraAdamW, Frugal, GaLoreAdafactor, GaLoreAdamW, GaLoreSGD
from .groups import parameter_groups
from .layerwise import layerwise

__all__ = [
    "Apollo",
    "ApolloMini",
    "FiraAdamW",
    "Frugal",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreSGD",
    "galore_backward",
    "layerwise",
    "parameter_groups",
]
