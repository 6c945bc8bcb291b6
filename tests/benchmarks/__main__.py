"""Speed and memory of training steps against named peers: python -m tests.benchmarks.

Every time is CPU time on one thread, the median of rounds in which all competitors take turns.
"""

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks import steps
from tests.benchmarks.timing import machine, medians, one_thread, peak_bytes

PEERS = {  # call: whose time is divided by its own
    steps.NUMPY_GEMM: steps.TORCH_GEMM,
    steps.TORCH_GEMM: steps.NUMPY_GEMM,
    steps.STEP: steps.AUTOGRAD,
    steps.TORCH_STEP: steps.AUTOGRAD,
    steps.AUTOGRAD: steps.TORCH_STEP,
    steps.NARROW_STEP: steps.STEP,
    steps.COMPLETION: steps.STEP,
    steps.NARROW_COMPLETION: steps.COMPLETION,
    steps.EXACT: steps.STEP,
    steps.RANDOMIZED: steps.STEP,
}
GEMM_OF = {  # calls that consist of d x d products, and the library that multiplies
    steps.NUMPY_GEMM: steps.NUMPY_GEMM,
    steps.STEP: steps.NUMPY_GEMM,
    steps.TORCH_GEMM: steps.TORCH_GEMM,
    steps.TORCH_STEP: steps.TORCH_GEMM,
    steps.AUTOGRAD: steps.TORCH_GEMM,
}
SHRUNK = {steps.NARROW_STEP: steps.STEP, steps.NARROW_COMPLETION: steps.COMPLETION}

Times = dict[str, float]


def main(sizes: tuple[int, ...] = (100, 1000), rounds: int = 7) -> None:
    """Measure at each width and print the tables; the targets are for the last width."""
    # rich takes a pipe for 80 columns wide and would break the rows
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    shape = f"L = {steps.problem(sizes[-1]).depth}, r = {steps.problem(sizes[-1]).rank}"
    with one_thread():
        console.print(machine())
        console.print(f"{shape}, float64, CPU time on one thread, median of {rounds} interleaved rounds\n")
        times = {width: medians(steps.calls(steps.problem(width)), rounds) for width in sizes}
        console.print(speed(times), memory(sizes))
    for line in targets(times[sizes[-1]], sizes[-1]):
        console.print(line)


def speed(times: dict[int, Times]) -> Table:
    """Each call's time next to its peer's, and how near it comes to the library's own matrix product."""
    table = _table("speed", "call", "d", "time [ms]", "GFLOP/s", "of GEMM [%]", "peer", "peer's [ms]", "peer's / own")
    for call, peer in PEERS.items():
        for width, found in times.items():
            own = found[call]
            pair = _digits(found[peer] * 1e3), _digits(found[peer] / own)
            table.add_row(call, str(width), _digits(own * 1e3), *_rate(call, width, found), peer, *pair)
    return table


def _rate(call: str, width: int, times: Times) -> tuple[str, str]:
    if call not in GEMM_OF:
        return "", ""
    one = GEMM_OF[call]
    count = 1 if call == one else steps.products(steps.problem(width).depth)
    return _digits(count * 2 * width**3 / times[call] / 1e9), _digits(100 * count * times[one] / times[call])


def memory(sizes: tuple[int, ...]) -> Table:
    """Trained parameters, and what a step in NumPy allocates at its peak: new weights and all that leads to them."""
    table = _table("memory", "call", "d", "what", "own [kB]", "peer", "peer's [kB]", "peer's / own")
    for width in sizes:
        found = steps.trainings(steps.problem(width))
        for call, peer in SHRUNK.items():
            for what, size in (("parameters", steps.parameter_bytes), ("peak of a step", peak_bytes)):
                own, other = size(found[call]), size(found[peer])
                table.add_row(
                    call, str(width), what, _digits(own / 1e3), peer, _digits(other / 1e3), _digits(other / own)
                )
    return table


def _table(title: str, *headings: str) -> Table:
    """Words to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(escape(heading), justify="left" if heading in ("call", "peer", "what") else "right")
    return table


def _digits(number: float) -> str:
    """Three of them that count, and no exponent."""
    return f"{float(f'{number:.3g}'):.12g}"


def targets(times: Times, width: int) -> list[str]:
    """What was aimed at and what came out; text, because a busy machine is no bug."""
    faster = [
        f"{call}, times faster than {peer} at d = {width}: target >= 10: reached {_digits(times[peer] / times[call])}"
        for call, peer in SHRUNK.items()
    ]
    cheap = [
        f"{call}, in NumPy steps at d = {width}: target < 5: reached {_digits(times[call] / times[steps.STEP])}"
        for call in (steps.EXACT, steps.RANDOMIZED)
    ]
    return faster + cheap


if __name__ == "__main__":
    if len(sys.argv) > 1:  # there is nothing to choose
        sys.exit(__doc__)
    main()
