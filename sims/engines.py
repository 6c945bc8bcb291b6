"""Where cells run: this process, a pool of processes, Dask, or SLURM jobs. What they share is submit and result.

Used through sims.sweep.workers.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Task = Callable[..., Any]
Jobs = Sequence[tuple[Any, ...]]
WHERE = '"1" (this process), "2", "3", ... (processes), "dask", "tcp://host:port" (Dask), "slurm", "jobs"'
DAY = 24 * 60  # minutes; SLURM's SBATCH_TIMELIMIT overrides it
CONNECT = 10  # seconds to wait for a Dask scheduler


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Engine(Protocol):
    """Futures have done() and result(); nothing starts before the first submit."""

    width: int
    """So many cells may be submitted at a time."""
    pause: float
    """Seconds between looks."""

    def submit(self, task: Task, jobs: Jobs) -> list[Any]:
        """A future of task(*job) for each job."""

    def cancel(self, future: Any) -> bool:
        """Whether nobody has to wait for this future any more."""

    def close(self, now: bool) -> None:
        """End all workers; now: in the middle of what they do. A later submit starts new ones."""


def engine(where: str, folder: Path | None) -> Engine:
    """The engine of that name. Raises ValueError or ModuleNotFoundError before any work."""
    if where == "1":
        return Here()
    if re.fullmatch(r"[1-9]\d*", where):
        return Pool(int(where))
    if where == "dask" or re.fullmatch(r"tcp://.+:\d+", where):
        _need("distributed", where)
        return Dask(where)
    if where in ("slurm", "jobs"):
        _need("submitit", where)
        return SlurmJobs(where, folder)
    raise ValueError(f"no workers are called {where!r}; there are {WHERE}")


def _need(package: str, where: str) -> None:
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{where!r} needs {package}: pip install 'lowdim[cluster]', which in the environment of ./run is "
            ".venv/bin/pip install -c requirements/constraints.txt -e '.[cluster]'"
        )


class Here:
    """This process, one cell at a time."""

    width, pause = 1, 0.0

    def submit(self, task: Task, jobs: Jobs) -> list[Any]:
        """Futures that are done already."""
        futures = []
        for job in jobs:
            futures.append(Future[Any]())
            futures[-1].set_result(task(*job))
        return futures

    def cancel(self, future: Any) -> bool:
        """There is never anything to wait for."""
        return True

    def close(self, now: bool) -> None:
        """Nothing runs."""


class Pool:
    """Processes of this machine, spawned: a fork would copy the threads' locks of BLAS and torch."""

    width, pause = sys.maxsize, 0.01

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.pool: ProcessPoolExecutor | None = None
        self.others: set[Any] = set()

    def submit(self, task: Task, jobs: Jobs) -> list[Any]:
        """Starts a process for each cell that finds no idle one, up to their number."""
        if self.pool is None:
            self.others = set(active_children())
            self.pool = ProcessPoolExecutor(self.processes, get_context("spawn"), _begin_worker)
        with _interrupts_blocked():
            return [self.pool.submit(task, *job) for job in jobs]

    def cancel(self, future: Any) -> bool:
        """Not while it runs: then its result is kept."""
        return future.cancel()

    def close(self, now: bool) -> None:
        """Processes are joined either way."""
        if self.pool is not None:
            for child in set(active_children()) - self.others if now else ():
                child.terminate()
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle; without a parent, even a killed one, there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with, args=(parent_process(),), daemon=True).start()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C waits, and processes that start here never see it, not even before _begin_worker."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Dask:
    """A Dask cluster of this machine, or the scheduler at an address, whose workers need this clone, too."""

    width, pause = sys.maxsize, 0.01

    def __init__(self, where: str) -> None:
        self.where = where
        self.client: Any = None
        self.cluster: Any = None
        self.executor: Any = None

    def submit(self, task: Task, jobs: Jobs) -> list[Any]:
        """Starts or finds the cluster first; OSError if there is none at the address."""
        if self.client is None:
            from distributed import Client, LocalCluster

            if self.where == "dask":
                local = {
                    "n_workers": cores(),
                    "threads_per_worker": 1,
                    "host": "127.0.0.1",
                    "dashboard_address": "127.0.0.1:0",
                }
                with _interrupts_blocked():
                    self.cluster = LocalCluster(**local)  # type: ignore[no-untyped-call]
            self.client = Client(self.cluster or self.where, timeout=CONNECT)  # type: ignore[no-untyped-call]
            self.executor = self.client.get_executor()
        return [self.executor.submit(task, *job) for job in jobs]

    def cancel(self, future: Any) -> bool:
        """Also while it runs, though a worker of another's cluster ends its cell for nobody."""
        return future.cancel()

    def close(self, now: bool) -> None:
        """Another's cluster stays up, without our cells."""
        if self.client is not None:
            self.executor.shutdown(wait=False)
            self.client.close()
        if self.cluster is not None:
            self.cluster.close()
        self.client = self.cluster = None


class SlurmJobs:
    """A SLURM array with a job of one core for each cell, or ("jobs") the same job scripts on this machine.

    Partition, account, memory and time limit come from sbatch's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT,
    SBATCH_MEM_PER_CPU, SBATCH_TIMELIMIT. Jobs and their logs go through a folder that the nodes must share.
    """

    pause = 0.2

    def __init__(self, where: str, folder: Path | None) -> None:
        self.where, self.parent = where, folder
        self.width = 1000 if where == "slurm" else cores()  # SLURM's default MaxArraySize is 1001
        self.executor: Any = None
        self.folder = Path()
        self.unfinished: list[Any] = []

    def submit(self, task: Task, jobs: Jobs) -> list[Any]:
        """One array for all of them."""
        if self.executor is None:
            self.executor = self._executor()
        with self.executor.batch():
            submitted = [self.executor.submit(task, *job) for job in jobs]
        self.unfinished = [job for job in self.unfinished if not job.done()] + submitted
        return submitted

    def _executor(self) -> Any:
        import submitit

        parent = self.parent or Path.cwd()
        parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="jobs-", dir=parent))
        try:
            executor = submitit.AutoExecutor(self.folder, cluster="slurm" if self.where == "slurm" else "local")
        except RuntimeError as error:
            shutil.rmtree(self.folder)
            raise OSError(f'{error} Call from a login node, or take "jobs" to try it out without SLURM') from error
        executor.update_parameters(name="lowdim", timeout_min=DAY, cpus_per_task=1)
        return executor

    def cancel(self, future: Any) -> bool:
        """Also while it runs."""
        future.cancel()
        return True

    def close(self, now: bool) -> None:
        """What still runs is cancelled."""
        if self.executor is None:
            return
        running = [job for job in self.unfinished if not job.done()]
        for job in running:
            job.cancel()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not all(job.done() for job in running):
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.executor = None
