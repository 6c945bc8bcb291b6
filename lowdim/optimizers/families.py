"""The optimizers by name: each is an inner optimizer and a residual rule, and has the options below.

`params` are parameters, named parameters, or groups. A group with the key `rank` is projected, and may have the other
keys of galore-torch: update_proj_gap (200), scale, proj_type ("std"); `parameter_groups(model, rank=...)` makes them.
Every other option can stand in a group, too. DistributedDataParallel, FSDP2 (fully_shard; all but GaLoreAdafactor) and
torch.distributed.checkpoint treat them as they treat torch.optim.AdamW. As galore-torch computes, to rounding:

    GaLoreAdamW(groups, refresh="exact", moments="keep", stagger=False, convention="authors")
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, Unpack

from .bases import Moments, Projector, Refresh
from .inner import Adafactor, Adam, Momentum
from .pipeline import LowRank
from .residual import Dropped, Rescaled, Scaled, Signed
from .states import Precision


class Options(TypedDict, total=False):
    """What every projected optimizer takes by name."""

    refresh: Refresh
    """How bases are found: "exact", an SVD; "randomized"; "warm" (the default), one subspace iteration from the last
    ones, at first randomized; "random" directions."""
    moments: Moments
    """At a refresh: "rotate" into the new bases (the default), "keep" as numbers (the authors), "reset"."""
    stagger: bool
    """Spread the refreshes of a group over the gap, so that no step but the first stalls; True."""
    lazy: bool
    """Double a gap when the leading direction has not changed five times (Q-GaLore); False."""
    state: Precision
    """Of the moments: "fp32" (float64 for float64 weights), "bf16", or "8bit" (of 4096 elements and more)."""
    codec: Literal["power", "dynamic"]
    """Of 8-bit moments: "power", our own (lowdim.quantization), or "dynamic", whose codes are those of bitsandbytes."""
    projector: Projector
    """Of the bases: "fp32", "bf16", "int8"; "seed" keeps none and draws random ones again at every step."""
    convention: Literal["torch", "authors"]
    """torch: eps stands behind the bias correction, and decay comes before the update; authors: the other way round."""
    stochastic_rounding: bool
    """Of bfloat16 weights, in which steps below 1/256 of a weight are lost otherwise; False."""
    foreach: bool | None
    """With fused: how torch.optim.AdamW computes. Taken, and without meaning here."""
    fused: bool | None
    amsgrad: bool
    """With the others: what torch.optim.AdamW can do besides. Taken if False."""
    maximize: bool
    capturable: bool
    differentiable: bool


SHARED: Options = {
    "refresh": "warm",
    "moments": "rotate",
    "stagger": True,
    "lazy": False,
    "state": "fp32",
    "codec": "power",
    "projector": "fp32",
    "convention": "torch",
    "stochastic_rounding": False,
}
PROJECTION = {"update_proj_gap": 200, "proj_type": "std"}
TORCHS = ("foreach", "fused", "amsgrad", "maximize", "capturable", "differentiable")  # the first two change no number


def _defaults(scale: float, own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a group has that does not say otherwise. Raises ValueError for options that there are not."""
    known = {**PROJECTION, "scale": scale, **SHARED}
    for name in TORCHS[2:]:
        if options.get(name):
            raise ValueError(f"{name} = True: torch.optim.AdamW can do that, these optimizers cannot; leave it out")
    options = {name: value for name, value in options.items() if name not in TORCHS}
    for name in sorted(options.keys() - known.keys()):
        remedy = "it is a key of groups: parameter_groups(model, rank=...)"
        remedy = remedy if name == "rank" else f"take {', '.join(known)}"
        raise ValueError(f"{name} = {options[name]!r} is no option of the optimizer; {remedy}")
    return {**known, **own, **options}


class _AdamW(LowRank):
    """Adam in the subspace, and everywhere else, with decoupled weight decay."""

    inner = Adam()
    scale = 0.25
    own: Mapping[str, Any] = {}
    """What else its groups have."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = True,
        **options: Unpack[Options],
    ) -> None:
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, _defaults(self.scale, {**own, **self.own}, options))


class GaLoreAdamW(_AdamW):
    """W <- W - lr alpha P Adam(P^T G): AdamW that sees the gradient in its leading directions alone.

    For m x n weights with m >= n it holds r (2 m + n) numbers in place of AdamW's 2 m n. scale: alpha, 0.25 by default.

    Raises ValueError for options, ranks, gaps, scales and sides that do not exist or do not fit a parameter, which it
    names. Zhao et al. 2024, arXiv 2403.03507, Algorithm 2.
    """

    rule = Dropped()


class GaLoreSGD(LowRank):
    """W <- W - lr alpha P (momentum of P^T G); with full rank, alpha = 1 and no momentum it is SGD exactly.

    Weight decay is decoupled. Zhao et al. 2024, arXiv 2403.03507, Definition 3.6 with the identity inside.
    """

    inner = Momentum()
    rule = Dropped()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if not 0 <= momentum < 1 or (nesterov and not momentum):
            raise ValueError(f"momentum = {momentum}, nesterov = {nesterov}: take 0 <= momentum < 1, > 0 with nesterov")
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, _defaults(1.0, own, options))


class GaLoreAdafactor(LowRank):
    """W <- W - rate alpha P Adafactor(P^T G): the second moment of P^T G by its row and column means.

    The other arguments are those of transformers' Adafactor: with relative_step, lr is None and the rate of step t is
    min(1e-2, t^-1/2); scale_parameter multiplies it by the root mean square of the weights.

    Zhao et al. 2024, arXiv 2403.03507, section 4; Shazeer & Stern 2018, arXiv 1804.04235.
    """

    inner = Adafactor()
    rule = Dropped()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if relative_step != (lr is None):
            raise ValueError(
                f"lr = {lr} with relative_step = {relative_step}: give one of them (relative_step = False)"
            )
        own = {
            "lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1,
            "weight_decay": weight_decay, "scale_parameter": scale_parameter, "relative_step": relative_step,
            "warmup_init": warmup_init,
        }  # fmt: skip
        super().__init__(params, _defaults(0.25, own, options))


class FiraAdamW(_AdamW):
    """GaLore plus what the subspace does not have, with the step that Adam takes in it, column by column.

    variant: "code" (the default), which published perplexities come from, or "paper"; they differ by alpha < 1: see
    lowdim.optimizers.residual. In groups the scale may be called alpha, as in the authors' package.

    Chen et al. 2024, arXiv 2410.01623, Algorithm 1.
    """

    rule = Scaled()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *more: Any,
        variant: Literal["paper", "code"] = "code",
        **named: Any,
    ) -> None:
        self.own = {"variant": variant}
        super().__init__(params, lr, *more, **named)


class Apollo(_AdamW):
    """W <- W - lr alpha^1/2 G diag k: k_j the step that Adam takes for column j in a random subspace, over its norm.

    Bases are not stored: a seed suffices. scale: alpha, 1 by default. Zhu et al. 2024, arXiv 2412.05270, Algorithm 1.
    """

    rule = Rescaled(by_column=True)
    scale = 1.0

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, *more: Any, **named: Any) -> None:
        super().__init__(params, lr, *more, **{"refresh": "random", "projector": "seed", "moments": "keep", **named})


class ApolloMini(Apollo):
    """APOLLO with one k for the matrix; meant for rank 1, and scale = 128 by default."""

    rule = Rescaled(by_column=False)
    scale = 128.0


class Frugal(_AdamW):
    """GaLore plus the sign of what the subspace does not have: W <- W - lr (alpha P N + s sign S).

    residual_scale: s. scale: alpha, 1 by default. Zmushko et al. 2024, arXiv 2411.07837, Algorithm 1 with SignSGD.
    """

    rule = Signed()
    scale = 1.0

    def __init__(self, *arguments: Any, residual_scale: float = 1.0, **named: Any) -> None:
        self.own = {"residual_scale": residual_scale}
        super().__init__(*arguments, **named)
