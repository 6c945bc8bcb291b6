"""Fine-tune a pretrained model on a few examples: one short loop, resumable bit for bit, alone or under torchrun."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import nn

from lm_experiments import checkpoints
from lm_experiments.adapt import adapted, frozen_factors, parameter_groups, trainable
from lm_experiments.batches import order
from lm_experiments.interruption import Interruption
from lm_experiments.processes import Parallel, Processes, fill, restore, training_state, whole
from lm_experiments.run_folder import METRICS
from lm_experiments.runs import FineTune
from lm_experiments.setting import Setting, moved
from lm_experiments.watch import Watch, spectra

Report = Callable[[int, float], None]


class Stopped(Exception):
    """A signal came; the run is saved and goes on when it is called again."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped by a signal; the same call goes on from here")
        self.code = code


class Diverged(ArithmeticError):
    """The loss, a gradient or an answer is not finite."""


def finetune(
    spec: FineTune,
    folder: Path,
    source: Path | None = None,
    *,
    here: Processes,
    parallel: Parallel = "ddp",
    save_every: int = 100,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train as the spec says, or go on where the run in `folder` stopped; what was found, as JSON keeps it.

    source: a folder with the task's files; without one they come from the Hub or the fetched assets. save_every: steps
    from one checkpoint to the next. report: called with step and loss after every step, in the first process.

    Raises Stopped after a SIGTERM or Ctrl-C, when all is saved; Diverged if a loss, a gradient or an answer is not
    finite; ValueError for a spec that does not fit its model, its data, the folder or the number of processes.
    """
    if save_every < 1:
        raise ValueError(f"save_every = {save_every}: take 1 or more steps from one checkpoint to the next")
    if spec.batch < here.size:
        raise ValueError(f"batch = {spec.batch} for {here.size} processes: take {here.size} or more, or fewer of them")
    if here.first:
        checkpoints.claim(folder, {**spec.described(), "processes": here.size, "parallel": parallel})
    torch.manual_seed(spec.seed)
    setting = Setting(spec, source, here.device)
    first = moved(setting.train.batch(order(len(setting.train), spec.batch, spec.seed, 1)), here.device)
    body = adapted(setting.model, spec, first, setting.loss)
    model = here.wrapped(body, parallel)
    run = Run(setting, model, body, folder, here)
    with Interruption() as interrupted:
        run.train(interrupted, save_every, report if report and here.first else lambda step, loss: None)
    return run.found()


class Run:
    """A training run between two checkpoints. What it has shown so far is in the folder's metrics.jsonl."""

    def __init__(self, setting: Setting, model: nn.Module, body: nn.Module, folder: Path, here: Processes) -> None:
        self.setting, self.spec, self.model, self.body = setting, setting.spec, model, body
        self.optimizer = torch.optim.AdamW(parameter_groups(model, setting.spec), eps=1e-6, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.folder, self.here, self.watch, self.seconds = folder, here, Watch(self.spec), 0.0

    def train(self, interrupted: Interruption, save_every: int, report: Report) -> None:
        """All steps that are left, a checkpoint after some of them, and after the last."""
        begun = self._resumed()
        if not self.here.first:
            self._steps(begun, interrupted, save_every, report, lambda step, **fields: None)
            return
        with closing(checkpoints.Log(self.folder, begun or None)) as log:
            self._steps(begun, interrupted, save_every, report, log)

    def found(self) -> dict[str, Any]:
        """The record's numbers."""
        lines = [json.loads(line) for line in (self.folder / METRICS).read_text().splitlines()]
        watched = {"spectra": spectra(self.body), "cosines": self.watch.cosines(self.spec.steps)}
        return {
            "losses": [line["loss"] for line in lines if "loss" in line],
            "scores": [{"step": line["step"], **line["scores"]} for line in lines if "scores" in line],
            "seconds": self.seconds,
            "trainable": trainable(self.body),
            "data": self.setting.fingerprint,
            **(watched if self.spec.watch else {}),
        }

    def _steps(
        self, begun: int, interrupted: Interruption, save_every: int, report: Report, log: Callable[..., None]
    ) -> None:
        if begun == 0:
            log(0, **self._evaluated(0))
        for step in range(begun + 1, self.spec.steps + 1):
            loss = self._step(step)
            log(step, loss=loss, **(self._evaluated(step) if step in self.spec.evaluations else {}))
            stop = self.here.any(bool(interrupted))
            if step % save_every == 0 or step == self.spec.steps or stop:
                self._save(step)
            report(step, loss)
            if stop:
                break
        if self.here.any(bool(interrupted)):  # also after the last step: whoever has more to run should not go on
            raise Stopped(interrupted.exit_code or 143)

    def _step(self, step: int) -> float:
        """One of AdamW; the loss before it. Dropout depends on seed, step and process alone."""
        clock = time.process_time()
        torch.manual_seed(crc32(f"{self.spec.seed} {self.here.rank} {step}".encode()))  # torch takes 32 bits of a seed
        self.model.train()
        share = (step - 1) / max(self.spec.steps - 1, 1)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 + share * (self.spec.decay - 1))
        loss = self._gradients(step)
        self._check(step, loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.process_time() - clock
        return loss

    def _gradients(self, step: int) -> float:
        """Accumulate those of the mean loss over the batch; the loss."""
        train, here, batch = self.setting.train, self.here, self.spec.batch
        indices = order(len(train), batch, self.spec.seed, step)[here.rank :: here.size]
        parts = np.array_split(indices, min(self.spec.accumulate, batch // here.size))  # as many in every process
        total = torch.zeros((), device=here.device)
        for number, part in enumerate(parts, 1):
            with here.together(self.model, last=number == len(parts)):
                loss = self.setting.loss(self.model, moved(train.batch(part), here.device)) * len(part) / batch
                torch.autograd.backward(loss * here.size)  # DDP and FSDP take the mean over processes
            total += loss.detach()
        return here.total(total)

    def _check(self, step: int, loss: float) -> None:
        """Raise Diverged, in every process or in none, before anything is spoilt."""
        gradients = {name: p.grad for name, p in self.body.named_parameters() if p.grad is not None}
        norm = whole(torch.nn.utils.get_total_norm(gradients.values()))
        if np.isfinite(loss) and bool(torch.isfinite(norm)):
            return
        bad = [f"the gradient of {name}" for name, g in gradients.items() if not bool(torch.isfinite(whole(g)).all())]
        raise self._diverged(step, "the loss" if not np.isfinite(loss) else (bad or ["the gradients' norm"])[0])

    def _evaluated(self, step: int) -> dict[str, Any]:
        answers = self.setting.answers(self.model, self.here.device)
        if not np.isfinite(answers).all():
            raise self._diverged(step, f"the answer to held-out example {np.flatnonzero(~np.isfinite(answers))[0]}")
        if self.spec.watch and step:
            self.watch(step, self.body)
        return {"scores": self.setting.scores(answers)}

    def _diverged(self, step: int, what: str) -> Diverged:
        advice = f"take a smaller lr than {self.spec.lr:g}" if step else "are the model's weights whole?"
        return Diverged(f"step {step} of {self.spec.key}: {what} is not finite; {advice}")

    def _save(self, step: int) -> None:
        state = training_state(self.model, self.optimizer) | {
            "factors": {name: whole(factor) for name, factor in frozen_factors(self.body).items()},
            "watch": self.watch.tensors,
            "seconds": self.seconds,
            "data": self.setting.fingerprint,
        }
        if self.here.first:
            checkpoints.save(self.folder, step, *checkpoints.flatten(state))

    def _resumed(self) -> int:
        """The step of the newest checkpoint, all as it was then; 0 without one."""
        found = checkpoints.latest(self.folder)
        if found is None:
            return 0
        state = checkpoints.unflatten(found.tensors, found.state)
        if changed := [name for name, digest in self.setting.fingerprint.items() if state["data"][name] != digest]:
            raise ValueError(
                f"{self.folder} was begun with other examples ({', '.join(changed)}): give the same data, or take "
                "another folder to begin again"
            )
        restore(self.model, self.optimizer, state)
        for name, factor in frozen_factors(self.body).items():
            fill(factor, state["factors"][name])
        self.watch.tensors, self.seconds = state["watch"], state["seconds"]
        return found.step
