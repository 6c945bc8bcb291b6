"""Fine-tune a pretrained model on a few examples: one short loop, resumable bit for bit, alone or under torchrun."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_experiments import checkpoints, models
from lm_experiments.adapt import adapted, autocast, centre, head_of, parameter_groups, trainable
from lm_experiments.batches import by_length, encode, held_out, order
from lm_experiments.interruption import Interruption
from lm_experiments.metrics import score
from lm_experiments.processes import Parallel, Processes, restore, training_state
from lm_experiments.run_folder import METRICS
from lm_experiments.runs import FineTune
from lm_experiments.tasks import text
from lm_experiments.watch import Watch, spectra

EVALUATED = 64  # examples in a batch of evaluation
Report = Callable[[int, float], None]


class Stopped(Exception):
    """A signal came; the run is saved and goes on when it is called again."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped by a signal; the same call goes on from here")
        self.code = code


class Diverged(ArithmeticError):
    """The loss or a gradient is not finite."""


class Setting:
    """The model, the examples and the question, as the spec says."""

    def __init__(self, spec: FineTune, source: Path | None, device: torch.device) -> None:
        self.spec, self.task = spec, text.TASKS[spec.task]
        train, validation = (text.load(spec.task, split, source) for split in ("train", "validation"))
        chosen = text.fewshot(train, spec.examples or len(train), spec.seed)
        tested = held_out(validation, spec.part, spec.held_out)
        self.model, tokenizer = _load(spec, self.task)
        if spec.centre and self.task.classes == 1:
            centre(self.model, float(chosen.labels.mean()))
        self.model.to(device)  # type: ignore[arg-type]
        self.words = _words(self.task, tokenizer) if self.asks else None
        self.train = encode(tokenizer, self.task, chosen, spec.length, asks=self.asks)
        self.test = encode(tokenizer, self.task, tested, spec.length, asks=self.asks)
        self.fingerprint = {"train": text.fingerprint(chosen), "held_out": text.fingerprint(tested)}

    @property
    def asks(self) -> bool:
        """Whether the model answers by words, having no head."""
        return head_of(self.model) is None

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scores (batch,), or the logits of the classes (batch, classes)."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.words is None:
            logits: Tensor = model(**inputs).logits.float()
            return logits[:, 0] if self.task.classes == 1 else logits
        last = inputs["attention_mask"].sum(1) - 1
        logits = model(**inputs).logits[torch.arange(len(last), device=last.device), last]
        return logits[:, self.words.to(last.device)].float()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of scores, or cross-entropy of classes."""
        outputs = self.outputs(model, batch)
        return (mse_loss if self.task.classes == 1 else cross_entropy)(outputs, batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The task's metrics on the held-out examples, the headline first."""
        model.eval()
        found = np.zeros(len(self.test))
        for indices in by_length(self.test, EVALUATED):
            with autocast(self.spec, device):
                outputs = self.outputs(model, moved(self.test.batch(indices), device))
            found[indices] = (outputs if self.task.classes == 1 else outputs.argmax(1)).cpu()
        return score(self.task, found if self.task.classes == 1 else found.astype(np.int64), self.test.labels)


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

    Raises Stopped after a SIGTERM or Ctrl-C, when all is saved; Diverged if loss or gradient are not finite; ValueError
    for a spec that does not fit its model, its data or the folder.
    """
    if here.first:
        checkpoints.claim(folder, {**spec.described(), "processes": here.size, "parallel": parallel})
    torch.manual_seed(spec.seed)
    setting = Setting(spec, source, here.device)
    first = moved(setting.train.batch(order(len(setting.train), spec.batch, spec.seed, 1)), here.device)
    with autocast(spec, here.device):
        body = adapted(setting.model, spec, first, setting.loss)
    model = here.wrapped(body, parallel)
    run = Run(setting, model, body, folder, here)
    with Interruption() as interrupted:
        run.train(interrupted, save_every, report or (lambda step, loss: None))
    return run.found()


class Run:
    """A training run between two checkpoints. What it has shown so far is in the folder's metrics.jsonl."""

    def __init__(self, setting: Setting, model: nn.Module, body: nn.Module, folder: Path, here: Processes) -> None:
        self.setting, self.spec, self.model, self.body = setting, setting.spec, model, body
        self.optimizer = torch.optim.AdamW(parameter_groups(model, setting.spec), eps=1e-6, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.folder, self.here, self.watch, self.seconds = folder, here, Watch(), 0.0

    def train(self, interrupted: Interruption, save_every: int, report: Report) -> None:
        """All steps that are left, a checkpoint after some of them, and after the last."""
        begun = self._resumed()
        log = checkpoints.Log(self.folder, begun or None) if self.here.first else (lambda step, **fields: None)
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
        if self.here.any(bool(interrupted)):  # or while the last checkpoint was written
            raise Stopped(interrupted.exit_code or 143)

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
        train, here = self.setting.train, self.here
        indices = order(len(train), self.spec.batch, self.spec.seed, step)[here.rank :: here.size]
        parts = [part for part in np.array_split(indices, self.spec.accumulate) if len(part)]
        total = torch.zeros((), device=here.device)
        for number, part in enumerate(parts, 1):
            with here.together(self.model, last=number == len(parts)), autocast(self.spec, here.device):
                loss = (
                    self.setting.loss(self.model, moved(train.batch(part), here.device)) * len(part) / self.spec.batch
                )
                torch.autograd.backward(loss * here.size)  # DDP and FSDP take the mean over processes
            total += loss.detach()
        return here.total(total)

    def _check(self, step: int, loss: float) -> None:
        """Raise Diverged, in every process or in none, before anything is spoilt."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if np.isfinite(loss) and bool(torch.isfinite(norm)):
            return
        bad = [f"the gradient of {name}" for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
        what = "the loss" if not np.isfinite(loss) else (bad or ["the gradients' norm"])[0]
        raise Diverged(f"step {step} of {self.spec.key}: {what} is not finite; take a smaller lr than {self.spec.lr:g}")

    def _evaluated(self, step: int) -> dict[str, Any]:
        if self.spec.watch and step:
            self.watch(step, self.body)
        return {"scores": self.setting.evaluate(self.model, self.here.device)}

    def _save(self, step: int) -> None:
        state = training_state(self.model, self.optimizer) | {"watch": self.watch.tensors, "seconds": self.seconds}
        if self.here.first:
            checkpoints.save(self.folder, step, *checkpoints.flatten(state))

    def _resumed(self) -> int:
        """The step of the newest checkpoint, all as it was then; 0 without one."""
        found = checkpoints.latest(self.folder)
        if found is None:
            return 0
        state = checkpoints.unflatten(found.tensors, found.state)
        restore(self.model, self.optimizer, state)
        self.watch.tensors, self.seconds = state["watch"], state["seconds"]
        return found.step


def moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device."""
    return {name: value.to(device) for name, value in batch.items()}


def _load(spec: FineTune, task: text.TextTask) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a head, or, if it is causal and the task has words, without one."""
    dtype = torch.bfloat16 if spec.precision == "bf16" and spec.method != "full" else torch.float32
    causal = bool(task.words) and models.is_causal(spec.model)
    classes = None if causal else task.classes
    return models.load(spec.model, classes=classes, dtype=dtype, dropout=spec.dropout, seed=spec.seed)


def _words(task: text.TextTask, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The first token of each class's word."""
    first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in task.words]
    if len(set(first)) < len(first):
        raise ValueError(
            f"{task.name}: the words {task.words} begin with the same token: give a model that tells them apart"
        )
    return torch.tensor(first)
