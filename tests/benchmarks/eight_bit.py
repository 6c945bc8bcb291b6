"""Whole Adam steps on 8-bit moments against bitsandbytes, torchao and torch's fused float32 Adam; what codes lose.

Errors are those of the moments M and sqrt(V) of one tensor, Gaussian values times log-normal sizes, coded once as the
optimizer codes them.
"""

import importlib.util
import shutil
from typing import Any

import torch

from lowdim.quantization import CODECS, Quantized, adam8bit_
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, medians

FUSED, THEIRS, COMPILED = "torch fused Adam", "bitsandbytes Adam8bit", "torchao AdamW8bit"
OURS = {f"8-bit Adam, {name}": codec for name, codec in CODECS.items()}
POWER = next(iter(OURS))
Decoded = tuple[torch.Tensor, torch.Tensor]


def available(name: str) -> bool:
    """Whether it is there; torchao's also needs a compiler, for half a minute."""
    if name == COMPILED:
        return importlib.util.find_spec("torchao") is not None and shutil.which("c++") is not None
    return name != THEIRS or importlib.util.find_spec("bitsandbytes") is not None


def parameter(size: int) -> torch.nn.Parameter:
    """With a gradient."""
    draws = torch.Generator().manual_seed(0)
    made = torch.nn.Parameter(torch.zeros(size))
    made.grad = torch.randn(size, generator=draws) * torch.randn(size, generator=draws).exp()
    return made


def training(name: str, size: int) -> tuple[torch.nn.Parameter, Call]:
    """A parameter, and one step: gradient to moments to parameter."""
    trained = parameter(size)
    if name == FUSED:
        return trained, torch.optim.Adam([trained], fused=True).step
    if name == THEIRS:
        from bitsandbytes.optim import Adam8bit

        return trained, Adam8bit([trained]).step
    if name == COMPILED:
        from torchao.optim import AdamW8bit

        return trained, AdamW8bit([trained], lr=torch.tensor(1e-3)).step
    codec, update, count = OURS[name], torch.empty(size), 0
    state = codec.zeros(trained)

    def call() -> None:
        nonlocal count
        count += 1
        adam8bit_(update, trained.grad, *state, count, codec=codec)  # type: ignore[arg-type]
        trained.data.add_(update, alpha=-1e-3)

    return trained, call


def names() -> list[str]:
    """Of all calls that can be made here."""
    return [name for name in (FUSED, THEIRS, COMPILED, *OURS) if available(name)]


def decoded(name: str, mean: torch.Tensor) -> Decoded:
    """M and sqrt(V), for V = M^2, after they have been coded."""
    if name == THEIRS:
        m, square = (_theirs(values, signed) for values, signed in ((mean, True), (mean.square(), False)))
    else:
        codec = OURS[name]
        m, square = codec.decode(*codec.encode(mean, mean.square()))
    return m, square.sqrt()


def _theirs(values: torch.Tensor, signed: bool) -> torch.Tensor:
    from bitsandbytes import functional

    points = functional.create_dynamic_map(signed=signed)
    return functional.dequantize_blockwise(*functional.quantize_blockwise(values, code=points, blocksize=256))


def errors(name: str, size: int) -> tuple[float, ...]:
    """Percent, of M and of sqrt(V): relative Frobenius error, mean relative error."""
    mean = parameter(size).grad
    assert mean is not None
    found = []
    for exact, other in zip((mean, mean.abs()), decoded(name, mean), strict=True):
        difference = (other - exact).abs()
        found += [100 * float(difference.norm() / exact.norm()), 100 * float((difference / exact.abs()).mean())]
    return tuple(found)


def state_bytes(name: str, size: int) -> float:
    """Of both moments, for an element."""
    pair: tuple[Quantized, ...] = OURS.get(name, CODECS["dynamic"]).zeros(torch.empty(size))
    return 8.0 if name == FUSED else sum(moment.nbytes for moment in pair) / size


def report(rounds: int, sizes: tuple[int, ...] = (10_000, 1_000_000)) -> Any:
    """Tables, and what was aimed at."""
    shown = table(
        "Adam on 8-bit moments: bytes of both for an element; relative errors, Frobenius and mean",
        "call", "elements", "time [ms]", "theirs / own", "own / fused", "bytes", "M [%]", "mean [%]", "root V [%]",
        "mean [%]",
    )  # fmt: skip
    lines: list[str] = []
    for size in sizes:
        times = medians({name: training(name, size)[1] for name in names()}, rounds)
        for name, own in times.items():
            ratio = digits(times[THEIRS] / own) if THEIRS in times else ""
            lost = () if name in (FUSED, COMPILED) else map(digits, errors(name, size))
            shown.add_row(
                name, str(size), digits(own * 1e3), ratio, digits(own / times[FUSED]), digits(state_bytes(name, size)),
                *lost,
            )  # fmt: skip
        if size == sizes[-1] and COMPILED in times:
            lines.append(f"{POWER}, times faster than {COMPILED}: reached {digits(times[COMPILED] / times[POWER])}")
        if size == sizes[-1] and THEIRS in times:
            better = all(ours <= theirs for ours, theirs in zip(errors(POWER, size), errors(THEIRS, size), strict=True))
            lines += [
                f"{POWER}, times faster than {THEIRS}: target >= 3: reached {digits(times[THEIRS] / times[POWER])}",
                f"{POWER}, all four errors at most those of {THEIRS}: target True: reached {better}",
            ]
    return [shown], lines
