"""The training loop that fine-tuning and pre-training share: short, resumable bit for bit, alone or under torchrun."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn
from torch.optim import Optimizer

from lm_experiments import checkpoints
from lm_experiments.batches import order
from lm_experiments.interruption import Interruption
from lm_experiments.processes import Parallel, Processes, restore, training_state, whole
from lm_experiments.run_folder import METRICS
from lm_experiments.runs import FineTune, Pretrain

Report = Callable[[int, float], None]
S = TypeVar("S", bound=FineTune | Pretrain)


class Stopped(Exception):
    """A signal came; the run is saved and goes on when it is called again."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped by a signal; the same call goes on from here")
        self.code = code


class Diverged(ArithmeticError):
    """The loss, a gradient or an answer is not finite."""


def begin(spec: FineTune | Pretrain, folder: Path, here: Processes, parallel: Parallel, save_every: int) -> None:
    """Claim the folder and seed torch; ValueError for what cannot run."""
    if save_every < 1:
        raise ValueError(f"save_every = {save_every}: take 1 or more steps from one checkpoint to the next")
    if spec.batch < here.size:
        raise ValueError(f"batch = {spec.batch} for {here.size} processes: take {here.size} or more, or fewer of them")
    if here.first:
        checkpoints.claim(folder, {**spec.described(), "processes": here.size, "parallel": parallel})
    torch.manual_seed(spec.seed)


class Loop(ABC, Generic[S]):
    """A training run between two checkpoints. What it has shown so far is in the folder's metrics.jsonl.

    model: `body` as the processes share it. examples: how many there are to train on. fingerprint: of the data.
    """

    clip = 0.0
    """Norm to which gradients are cut; 0 never cuts."""

    def __init__(
        self,
        spec: S,
        model: nn.Module,
        body: nn.Module,
        optimizer: Optimizer,
        folder: Path,
        here: Processes,
        examples: int,
        fingerprint: dict[str, str],
    ) -> None:
        self.spec, self.model, self.body, self.optimizer = spec, model, body, optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.folder, self.here, self.examples, self.fingerprint = folder, here, examples, fingerprint
        self.seconds = 0.0

    @property
    def parts(self) -> int:
        """Into which each process divides its share of a batch: as many in all of them."""
        return min(self.spec.accumulate, self.spec.batch // self.here.size)

    @abstractmethod
    def loss(self, indices: Integer[np.ndarray, " part"]) -> Tensor:
        """The mean loss over these examples."""

    def weight(self, indices: Integer[np.ndarray, " part"]) -> int:
        """What the mean loss over these examples counts in that over more of them: by default their number."""
        return len(indices)

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1, over the spec's."""

    @abstractmethod
    def evaluated(self, step: int) -> dict[str, Any]:
        """What the held-out examples say after a step, for the metrics."""

    def backward(self, step: int, loss: Tensor) -> None:
        """Of a part of a batch, whose loss counts as much as the part is of the batch."""
        torch.autograd.backward(loss)

    def to_check(self) -> dict[str, Tensor]:
        """What must be finite for the optimizer to go on, as a message calls it."""
        return {f"the gradient of {name}": p.grad for name, p in self.body.named_parameters() if p.grad is not None}

    def cut(self, norm: Tensor) -> None:
        """Gradients of this norm, to `clip` at most."""
        torch.nn.utils.clip_grads_with_norm_(self.body.parameters(), self.clip, norm)

    def seen(self, step: int) -> None:
        """Called when gradients are what the optimizer will see."""

    def kept(self) -> dict[str, Any]:
        """What a checkpoint needs beside all that trains."""
        return {}

    def put_back(self, state: dict[str, Any]) -> None:
        """What `kept` gave."""

    def train(self, save_every: int, report: Report | None) -> list[dict[str, Any]]:
        """All steps that are left, a checkpoint after some of them, and after the last; all lines of the metrics."""
        report = report if report and self.here.first else lambda step, loss: None
        with Interruption() as interrupted:
            begun = self._resumed()
            if self.here.first:
                with closing(checkpoints.Log(self.folder, begun or None)) as log:
                    self._steps(begun, interrupted, save_every, report, log)
            else:
                self._steps(begun, interrupted, save_every, report, lambda step, **fields: None)
        return [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]

    def _steps(
        self, begun: int, interrupted: Interruption, save_every: int, report: Report, log: Callable[..., None]
    ) -> None:
        if begun == 0:
            log(0, **self.evaluated(0))
        for step in range(begun + 1, self.spec.steps + 1):
            loss = self._step(step)
            log(step, loss=loss, **(self.evaluated(step) if step in self.spec.evaluations else {}))
            stop = self.here.any(bool(interrupted))
            if step % save_every == 0 or step == self.spec.steps or stop:
                self._save(step)
            report(step, loss)
            if stop:
                break
        if self.here.any(bool(interrupted)):  # also after the last step: whoever has more to run should not go on
            raise Stopped(interrupted.exit_code or 143)

    def _step(self, step: int) -> float:
        """One of the optimizer; the loss before it. Dropout depends on seed, step and process alone."""
        clock = time.process_time()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate(step)
        loss = self._gradients(step)
        norm = self._check(step, loss)
        if self.clip:
            self.cut(norm)
        looked = time.process_time()
        self.seen(step)
        clock += time.process_time() - looked  # whoever watches is no part of the step
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.process_time() - clock
        return loss

    def indices(self, step: int) -> Integer[np.ndarray, " batch"]:
        """The examples of a step, over all processes."""
        return order(self.examples, self.spec.batch, self.spec.seed, step)

    def _gradients(self, step: int) -> float:
        """Accumulate those of the mean loss over the batch; the loss."""
        here, indices = self.here, self.indices(step)
        torch.manual_seed(crc32(f"{self.spec.seed} {here.rank} {step}".encode()))  # torch takes 32 bits of a seed
        self.model.train()
        parts, whole_batch = np.array_split(indices[here.rank :: here.size], self.parts), self.weight(indices)
        total = torch.zeros((), device=here.device)
        for number, part in enumerate(parts, 1):
            with here.together(self.model, last=number == len(parts)):
                loss = self.loss(part) * self.weight(part) / whole_batch
                self.backward(step, loss * here.size)  # DDP and FSDP take the mean over processes
            total += loss.detach()
        return here.total(total)

    def _check(self, step: int, loss: float) -> Tensor:
        """The norm of `to_check`; raises Diverged, in every process or in none, before anything spoilt is saved."""
        there = self.to_check()
        norm = whole(torch.nn.utils.get_total_norm(there.values()))
        if np.isfinite(loss) and bool(torch.isfinite(norm)):
            return norm
        bad = [name for name, value in there.items() if not bool(torch.isfinite(whole(value)).all())]
        raise self._diverged(step, "the loss" if not np.isfinite(loss) else (bad or ["the total norm"])[0])

    def _diverged(self, step: int, what: str) -> Diverged:
        advice = f"take a smaller lr than {self.spec.lr:g}" if step else "are the model's weights whole?"
        return Diverged(f"step {step} of {self.spec.key}: {what} is not finite; {advice}")

    def _save(self, step: int) -> None:
        state = training_state(self.model, self.optimizer)
        state |= {**self.kept(), "seconds": self.seconds, "data": self.fingerprint}
        if self.here.first:
            checkpoints.save(self.folder, step, *checkpoints.flatten(state))

    def _resumed(self) -> int:
        """The step of the newest checkpoint, all as it was then; 0 without one."""
        found = checkpoints.latest(self.folder)
        if found is None:
            return 0
        state = checkpoints.unflatten(found.tensors, found.state)
        if changed := [name for name, digest in self.fingerprint.items() if state["data"][name] != digest]:
            raise ValueError(
                f"{self.folder} was begun with other examples ({', '.join(changed)}): give the same data, or take "
                "another folder to begin again"
            )
        restore(self.model, self.optimizer, state)
        self.put_back(state)
        self.seconds = state["seconds"]
        return found.step
