"""Model, examples and question of a run: what is put in, what comes out, what the loss is, how good the answers are."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_experiments import models
from lm_experiments.adapt import autocast, centre, head_of
from lm_experiments.batches import by_length, encode, held_out
from lm_experiments.metrics import score
from lm_experiments.runs import FineTune
from lm_experiments.tasks import text

EVALUATED = 64  # examples in a batch of evaluation


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
        """Scores (batch,), or the logits of the classes (batch, classes), in float32."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with autocast(self.spec, batch["labels"].device):
            logits: Tensor = model(**inputs).logits
        if self.words is None:
            return logits[:, 0].float() if self.task.classes == 1 else logits.float()
        last = inputs["attention_mask"].sum(1) - 1  # padding is on the right
        return logits[torch.arange(len(last), device=last.device), last][:, self.words.to(last.device)].float()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of scores, or cross-entropy of classes. Take its gradient outside autocast, too."""
        return (mse_loss if self.task.classes == 1 else cross_entropy)(self.outputs(model, batch), batch["labels"])

    @torch.no_grad()
    def answers(self, model: nn.Module, device: torch.device) -> Float64[np.ndarray, " examples"]:
        """The score, or the class, of each held-out example; NaN where an output is not finite."""
        model.eval()
        found = np.zeros(len(self.test))
        for indices in by_length(self.test, EVALUATED):
            outputs = self.outputs(model, moved(self.test.batch(indices), device)).reshape(len(indices), -1)
            best = outputs[:, 0] if self.task.classes == 1 else outputs.argmax(1).float()
            found[indices] = torch.where(torch.isfinite(outputs).all(1), best, torch.nan).cpu()
        return found

    def scores(self, answers: Float64[np.ndarray, " examples"]) -> dict[str, float]:
        """The task's metrics on the held-out examples, the headline first."""
        return score(self.task, answers if self.task.classes == 1 else answers.astype(np.int64), self.test.labels)


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
