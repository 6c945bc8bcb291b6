"""Fine-tune a pretrained model on a few examples."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from torch import Tensor, nn

from lm_experiments.adapt import adapted, frozen_factors, optimizer, trainable
from lm_experiments.batches import order
from lm_experiments.loop import Diverged, Loop, Report, Stopped, begin
from lm_experiments.processes import Parallel, Processes, fill, whole
from lm_experiments.runs import FineTune
from lm_experiments.setting import Setting, moved
from lm_experiments.watch import Watch, spectra, updates

__all__ = ["Diverged", "Run", "Stopped", "finetune"]


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
    begin(spec, folder, here, parallel, save_every)
    setting = Setting(spec, source, here.device)
    first = moved(setting.train.batch(order(len(setting.train), spec.batch, spec.seed, 1)), here.device)
    watch = Watch(spec)
    if spec.watch:
        watch.begin(setting.model, first, setting.loss)
    body = adapted(setting.model, spec, first, setting.loss)
    run = Run(setting, here.wrapped(body, parallel), body, folder, here, watch)
    return run.found(run.train(save_every, report))


class Run(Loop[FineTune]):
    """Of a method's optimizer, on the examples of a setting."""

    def __init__(
        self, setting: Setting, model: nn.Module, body: nn.Module, folder: Path, here: Processes, watch: Watch
    ) -> None:
        spec = setting.spec
        super().__init__(
            spec, model, body, optimizer(model, spec), folder, here, len(setting.train), setting.fingerprint
        )
        self.setting, self.watch = setting, watch

    def loss(self, indices: Integer[np.ndarray, " part"]) -> Tensor:
        """The setting's, of the model."""
        return self.setting.loss(self.model, moved(self.setting.train.batch(indices), self.here.device))

    def rate(self, step: int) -> float:
        """Linear from 1 to the spec's decay."""
        return 1 + (step - 1) / max(self.spec.steps - 1, 1) * (self.spec.decay - 1)

    def evaluated(self, step: int) -> dict[str, Any]:
        """The scores; raises Diverged if an answer is not finite."""
        answers = self.setting.answers(self.model, self.here.device)
        if not np.isfinite(answers).all():
            raise self._diverged(step, f"the answer to held-out example {np.flatnonzero(~np.isfinite(answers))[0]}")
        found = {"scores": self.setting.scores(answers)}
        if not self.spec.watch or not step:
            return found
        self.watch(step, self.body)
        return {**found, "first": self.watch.inside(self.body, self.optimizer)}

    def kept(self) -> dict[str, Any]:
        """The factors that the first gradient chose, and what was watched."""
        factors = {name: whole(factor) for name, factor in frozen_factors(self.body).items()}
        return {"factors": factors, "watch": self.watch.tensors}

    def put_back(self, state: dict[str, Any]) -> None:
        """Factors and what was watched."""
        for name, factor in frozen_factors(self.body).items():
            fill(factor, state["factors"][name])
        self.watch.tensors = state["watch"]

    def found(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """The record's numbers, of all lines of the metrics."""
        return {
            "losses": [line["loss"] for line in lines if "loss" in line],
            "scores": [{"step": line["step"], **line["scores"]} for line in lines if "scores" in line],
            "seconds": self.seconds,
            "trainable": trainable(self.body),
            "data": self.fingerprint,
            **(self._watched(lines) if self.spec.watch else {}),
        }

    def _watched(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "spectra": spectra(updates(self.body, self.watch.start)),
            "cosines": self.watch.cosines(self.spec.steps),
            "first": {str(line["step"]): line["first"] for line in lines if "first" in line},
        }
