"""Speed and memory of steps, tangent kernels, adapters and optimizers against named peers: python -m tests.benchmarks.

Every time is CPU time on one thread, the median of rounds in which all competitors take turns.
"""

import sys

from rich.console import Console
from rich.table import Table

from tests.benchmarks import adapters, eight_bit, kernel, low_rank_backward, optimizers, seen, simulator, steps
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import machine, medians, one_thread, peak_bytes

PEERS = [  # call, and whose time is divided by its own
    (steps.NUMPY_GEMM, steps.TORCH_GEMM),
    (steps.STEP, steps.JAX_STEP),
    (steps.STEP, steps.AUTOGRAD),
    (steps.TORCH_STEP, steps.AUTOGRAD),
    (steps.JAX_STEP, steps.AUTOGRAD),
    (steps.NARROW_STEP, steps.STEP),
    (steps.COMPLETION, steps.STEP),
    (steps.NARROW_COMPLETION, steps.COMPLETION),
    (steps.EXACT, steps.STEP),
    (steps.RANDOMIZED, steps.STEP),
]
GEMM_OF = {  # calls that consist of d x d products, and the library that multiplies
    steps.NUMPY_GEMM: steps.NUMPY_GEMM,
    steps.STEP: steps.NUMPY_GEMM,
    steps.TORCH_STEP: steps.TORCH_GEMM,
}
SHRUNK = {steps.NARROW_STEP: steps.STEP, steps.NARROW_COMPLETION: steps.COMPLETION}

Times = dict[str, float]


def main(sizes: tuple[int, ...] = (100, 1000), rounds: int = 7) -> None:
    """Measure at each width and print the tables, then what was aimed at."""
    # rich takes a pipe for 80 columns wide and would break the rows
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    shape = f"L = {steps.problem(sizes[-1]).depth}, r = {steps.problem(sizes[-1]).rank}"
    small = sizes[-1] < 1000  # a trial of the tables themselves
    with one_thread():
        console.print(machine())
        console.print(f"{shape}, float64, CPU time on one thread, median of {rounds} interleaved rounds\n")
        times = {width: medians(steps.calls(steps.problem(width)), rounds) for width in sizes}
        console.print(speed(times), memory(sizes))
        simulated, lines = simulator.report(rounds, sizes) if small else simulator.report(rounds)
        partly, others = seen.report(rounds, sizes[0], 10, sizes) if small else seen.report(rounds)
        console.print(*simulated, *partly)
        lines += [*others, seen.sensing_peak(sizes[0], 10) if small else seen.sensing_peak()]
        if kernel.available():
            tangents, kernels = kernel.report(rounds, (kernel.TINY,)) if small else kernel.report(rounds)
            console.print(*tangents)
            lines += kernels
        if adapters.available():
            tuned, others = adapters.report(rounds, (adapters.TINY,)) if small else adapters.report(rounds)
            console.print(*tuned)
            lines += others
        projected, others = optimizers.report(rounds, (optimizers.TINY,)) if small else optimizers.report(rounds)
        console.print(*projected)
        lines += others
        if low_rank_backward.available():
            tiny = (low_rank_backward.TINY,)
            formed, others = low_rank_backward.report(rounds, tiny) if small else low_rank_backward.report(rounds)
            console.print(*formed)
            lines += others
        coded, others = eight_bit.report(rounds, (1000,)) if small else eight_bit.report(rounds)
        console.print(*coded)
        lines += others
    for line in [*targets(times), *lines]:
        console.print(line)


def speed(times: dict[int, Times]) -> Table:
    """Each call's time next to its peer's, and how near it comes to the library's own matrix product."""
    shown = table("speed", "call", "d", "time [ms]", "GFLOP/s", "of GEMM [%]", "peer", "peer's [ms]", "peer's / own")
    for call, peer in PEERS:
        for width, found in times.items():
            if call in found and peer in found:
                own = found[call]
                pair = digits(found[peer] * 1e3), digits(found[peer] / own)
                shown.add_row(call, str(width), digits(own * 1e3), *_rate(call, width, found), peer, *pair)
    return shown


def _rate(call: str, width: int, times: Times) -> tuple[str, str]:
    if call not in GEMM_OF:
        return "", ""
    one = GEMM_OF[call]
    count = 1 if call == one else steps.products(steps.problem(width).depth)
    return digits(count * 2 * width**3 / times[call] / 1e9), digits(100 * count * times[one] / times[call])


def memory(sizes: tuple[int, ...]) -> Table:
    """Trained parameters, and what a step in NumPy allocates at its peak: new weights and all that leads to them."""
    shown = table("memory", "call", "d", "what", "own [kB]", "peer", "peer's [kB]", "peer's / own")
    for width in sizes:
        found = steps.trainings(steps.problem(width))
        for call, peer in SHRUNK.items():
            for what, size in (("parameters", steps.parameter_bytes), ("peak of a step", peak_bytes)):
                own, other = size(found[call]), size(found[peer])
                pair = digits(other / 1e3), digits(other / own)
                shown.add_row(call, str(width), what, digits(own / 1e3), peer, *pair)
    return shown


def targets(times: dict[int, Times]) -> list[str]:
    """What was aimed at and what came out; text, because a busy machine is no bug."""
    small, large = min(times), max(times)
    lines = [
        f"{steps.STEP}, times faster than {steps.JAX_STEP} at d = {width}: target >= {aim}: reached "
        f"{digits(times[width][steps.JAX_STEP] / times[width][steps.STEP])}"
        for width, aim in ((small, 1.3), (large, 1))
        if steps.JAX_STEP in times[width]
    ]
    found = times[large]
    peak = _rate(steps.STEP, large, found)[1]
    lines.append(f"{steps.STEP}, percent of {steps.NUMPY_GEMM} at d = {large}: target >= 70: reached {peak}")
    lines += [
        f"{call}, times faster than {peer} at d = {large}: target >= 10: reached {digits(found[peer] / found[call])}"
        for call, peer in SHRUNK.items()
    ]
    return lines + [
        f"{call}, in NumPy steps at d = {large}: target < 5: reached {digits(found[call] / found[steps.STEP])}"
        for call in (steps.EXACT, steps.RANDOMIZED)
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:  # there is nothing to choose
        sys.exit(__doc__)
    main()
