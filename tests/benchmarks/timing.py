"""CPU time and memory of calls, measured side by side, and the machine on which they were measured."""

import math
import platform
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

Call = Callable[[], object]


@dataclass(frozen=True)
class Repeated:
    """A call that takes `steps` steps at once; its time is that of one of them."""

    call: Call
    steps: int

    def __call__(self) -> object:
        """Take all of the steps."""
        return self.call()


LEAST = 5e-3  # seconds; a shorter call is repeated until a sample lasts as long, far above the clock's resolution


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for every BLAS and for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def medians(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each call. All of them run in every round, so that a busy spell of the machine hits all."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples = [{name: _seconds(call, repeats[name]) for name, call in calls.items()} for _ in range(rounds)]
    return {name: statistics.median(sample[name] for sample in samples) for name in calls}


def _repeats(call: Call) -> int:
    call()  # the first one pays for imports, thread pools and untouched memory
    whole = _seconds(call, 1) * (call.steps if isinstance(call, Repeated) else 1)
    return math.ceil(LEAST / max(whole, 1e-6))


def _seconds(call: Call, repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begun) / repeats / (call.steps if isinstance(call, Repeated) else 1)


def peak_bytes(call: Call, *, warm: bool = True) -> int:
    """The most memory that Python and NumPy hold at once during the call, beyond what existed before."""
    if warm:
        call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def machine() -> str:
    """Processor, versions, and which BLAS runs in NumPy and in torch, with its threads."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas = "; ".join(
        f"{pool['internal_api']} {pool['version']}, kernel {pool.get('architecture', 'unknown')}, "
        f"threads: {pool['num_threads']}"
        for pool in pools
    )
    return (
        f"{_processor()}; Python {platform.python_version()}\n"
        f"NumPy {np.__version__}: {blas or _built_with()}\n"
        f"torch {metadata.version('torch')}: {_torch_blas()}, OpenMP threads: {torch.get_num_threads()}"
    )


def _torch_blas() -> str:
    """MKL does not tell which kernel it runs; torch's own kernels do."""
    built = torch.__config__.show()
    name, version = _first(r"BLAS_INFO=(\w+)", built), _first(r"Math Kernel Library Version (\S+?)-", built)
    return f"BLAS {name or 'unknown'} {version}".rstrip() + f", own kernels {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # Linux alone; platform.processor() is often empty there
    return _first(r"model name\s*: (.+)", info.read_text() if info.exists() else "") or platform.processor()


def _built_with() -> str:
    """NumPy's BLAS where threadpoolctl does not know it, as Apple's Accelerate."""
    return str(np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"])


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
