"""Full-parameter training through low-rank gradients: GaLore, Fira, APOLLO, Frugal."""

from .families import Apollo, ApolloMini, FiraAdamW, Frugal, GaLoreAdafactor, GaLoreAdamW, GaLoreSGD
from .groups import parameter_groups

__all__ = [
    "Apollo",
    "ApolloMini",
    "FiraAdamW",
    "Frugal",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreSGD",
    "parameter_groups",
]
