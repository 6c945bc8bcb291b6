"""Train a language model to predict the next token of a text, from scratch or from what it is."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from lm_experiments import llama, models
from lm_experiments.factored import factored, frozen
from lm_experiments.llama_sizes import SIZES
from lm_experiments.loop import Diverged, Loop, Report, begin
from lm_experiments.optimize import prepared, state_bytes
from lm_experiments.processes import Parallel, Processes, fill, whole
from lm_experiments.runs import Pretrain
from lm_experiments.tasks import instructions, streams
from lm_experiments.tasks.streams import Rows, Text
from lm_experiments.watch_gradients import Watch, gradients
from lowdim.optimizers import layerwise
from lowdim.optimizers.pipeline import LowRank

EVALUATED = 16  # rows in a batch of evaluation
POINTS = 200  # of a loss curve in a record


def pretrain(
    spec: Pretrain,
    folder: Path,
    source: Path | None = None,
    *,
    here: Processes,
    parallel: Parallel = "ddp",
    save_every: int = 100,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train as the spec says, or go on where the run in `folder` stopped; what was found, as JSON keeps it.

    source: the file or folder of the text "files", or of "instructions". save_every, report, and what is raised: as
    `finetune` has it.
    """
    if parallel == "fsdp" and (spec.layerwise or spec.low_rank_backward):
        raise ValueError("parallel = 'fsdp' reduces whole gradients: layerwise and low_rank_backward need 'ddp'")
    begin(spec, folder, here, parallel, save_every)
    body, text = started(spec, source)
    model, optimizer = prepared(body, spec, here, parallel)
    run = Run(spec, text, model, body, optimizer, folder, here)
    return run.found(run.train(save_every, report))


def started(spec: Pretrain, source: Path | None = None) -> tuple[nn.Module, Text]:
    """The model as it starts, on the CPU, and its text."""
    if spec.model in SIZES:
        tokenizer = models.tokenizer_of(spec.tokenizer) if spec.tokenizer else None
        text = _read(spec, source, tokenizer)
        vocabulary = max(text.vocabulary, SIZES[spec.model].vocabulary)
        model: nn.Module = llama.fresh(llama.config(spec.model, vocabulary, spec.length), spec.seed)
    elif spec.tokenizer is None:
        model, tokenizer = models.load(spec.model)
        text = _read(spec, source, tokenizer)
    else:
        raise ValueError(f"tokenizer = {spec.tokenizer!r} of {spec.model}, which has its own: leave it out")
    model = factored(model, spec, spec.seed)
    if spec.precision == "bf16":  # not model.bfloat16(), which would round the frequencies of positions, too
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    return model, text


def _read(spec: Pretrain, source: Path | None, tokenizer: PreTrainedTokenizerBase | None) -> Text:
    kind = instructions if spec.text.partition(":")[0] == instructions.NAME else streams
    return kind.read(spec.text, spec.length, source, tokenizer)


class Run(Loop[Pretrain]):
    """Of any optimizer, on the rows of a text."""

    def __init__(
        self,
        spec: Pretrain,
        text: Text,
        model: nn.Module,
        body: nn.Module,
        optimizer: Optimizer,
        folder: Path,
        here: Processes,
    ) -> None:
        super().__init__(spec, model, body, optimizer, folder, here, len(text.train), text.fingerprint)
        self.text, self.clip, self.watch = text, spec.clip, Watch(spec)
        if here.size > len(self._evaluation):
            raise ValueError(f"{len(self._evaluation)} held-out rows for {here.size} processes: take as many")

    @property
    def _low_rank(self) -> LowRank:
        assert isinstance(self.optimizer, LowRank)  # the spec sees to that
        return self.optimizer

    @property
    def _evaluation(self) -> Integer[np.ndarray, " rows"]:
        """The held-out rows that are evaluated, evenly spread."""
        rows = len(self.text.held_out)
        return np.linspace(0, rows - 1, min(self.spec.held_out or rows, rows)).astype(int)

    def loss(self, indices: Integer[np.ndarray, " part"]) -> Tensor:
        """Mean cross-entropy in nats over the tokens that are predicted, of training rows."""
        return self._entropy(self.text.train, indices).sum() / self.weight(indices)

    def weight(self, indices: Integer[np.ndarray, " part"]) -> int:
        """Tokens that are predicted: every one counts alike, whatever part, process or row it is in."""
        return self.text.train.predicted(indices)

    def _entropy(self, side: Rows, indices: Integer[np.ndarray, " part"]) -> Tensor:
        """Of each token but the first of each row, in float32; 0 where none is predicted."""
        tokens, labels = (torch.from_numpy(a).to(self.here.device) for a in (side.rows(indices), side.labels(indices)))
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.spec.precision == "mixed"):
            logits: Tensor = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=streams.IGNORED
        )

    def rate(self, step: int) -> float:
        """Linear to 1 over the warm-up, then min + (1 - min) (1 + cos pi t) / 2, t from 0 to 1 at the last step."""
        rising = round(self.spec.warmup * self.spec.steps)
        if step <= rising:
            return step / rising
        share = (step - rising) / max(self.spec.steps - rising, 1)
        return self.spec.floor + (1 - self.spec.floor) * (1 + math.cos(math.pi * share)) / 2

    def backward(self, step: int, loss: Tensor) -> None:
        """Layer-wise updates come with it, so what is not finite must be found before; raises Diverged for that."""
        if not self.spec.layerwise:
            return super().backward(step, loss)
        if self.here.any(not math.isfinite(loss.detach())):
            raise self._diverged(step, "the loss")
        try:
            super().backward(step, loss)
        except ValueError as refused:  # a gradient that should be decomposed is not finite: here, in all processes
            raise Diverged(f"step {step} of {self.spec.key}: {refused}") from refused

    def to_check(self) -> dict[str, Tensor]:
        """Gradients, and cores in the place of those that are not formed; of layer-wise updates the weights themselves.

        The latter are spoilt by then, but not saved: the newest checkpoint is as good as it was.
        """
        if self.spec.layerwise:
            return {f"{name} after its update": weight.detach() for name, weight in self.body.named_parameters()}
        found = super().to_check()
        if self.spec.low_rank_backward:
            self._low_rank.meet()
            states = {name: self.optimizer.state.get(p, {}) for name, p in self.body.named_parameters()}
            found |= {f"the core of {name}": state["core"] for name, state in states.items() if "core" in state}
        return found

    def cut(self, norm: Tensor) -> None:
        """Cores, too."""
        if self.spec.low_rank_backward:
            self._low_rank.clip_grad_norm_(self.clip)
        else:
            super().cut(norm)

    def _resumed(self) -> int:
        """As Loop's; layer-wise from then on, for a state is loaded by way of a step with gradients of its own."""
        begun = super()._resumed()
        if self.spec.layerwise:
            layerwise(self._low_rank, self.parts)
        return begun

    @torch.no_grad()
    def evaluated(self, step: int) -> dict[str, Any]:
        """Mean loss in nats a token, and its exponential; raises Diverged if that is not finite."""
        self.model.eval()
        rows, size = self._evaluation, self.here.size
        parts = np.array_split(rows, size * -(-len(rows) // (EVALUATED * size)))  # equally many for every process
        total = torch.zeros((), dtype=torch.float64, device=self.here.device)
        for part in parts[self.here.rank :: size]:
            total += self._entropy(self.text.held_out, part).double().sum()
        loss = self.here.total(total) / self.text.held_out.predicted(rows)
        perplexity = float(torch.tensor(loss, dtype=torch.float64).exp())
        if not math.isfinite(perplexity):
            raise self._diverged(step, f"the held-out perplexity at loss {loss:g}")
        watched = {"gradients": self._watched(step)} if self.spec.watch else {}
        return {"scores": {"perplexity": perplexity, "loss": loss}, **watched}

    @torch.enable_grad()
    def _watched(self, step: int) -> dict[str, Any]:
        """The gradients of the next two batches, without a step."""
        two = []
        for later in (step + 1, step + 2):
            self._check(later, self._gradients(later))
            two.append(gradients(self.body))
            self.optimizer.zero_grad()
        return self.watch(*two)

    def seen(self, step: int) -> None:
        """Watch them, if wanted."""
        if self.spec.watch:
            self.watch.seen(step, gradients(self.body))

    def kept(self) -> dict[str, Any]:
        """What does not train: drawn once, and perhaps otherwise by another version of torch; what was watched."""
        fixed = {name: whole(parameter) for name, parameter in frozen(self.body).items()}
        return {"frozen": fixed, **({"watch": self.watch.state} if self.spec.watch else {})}

    def put_back(self, state: dict[str, Any]) -> None:
        """What does not train, and what was watched."""
        for name, parameter in frozen(self.body).items():
            fill(parameter, state["frozen"][name])
        device = self.here.device
        watched = state.get("watch", {}).items()
        self.watch.state = {name: {key: t.to(device) for key, t in its.items()} for name, its in watched}

    def found(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """The record's numbers, of all lines of the metrics."""
        return {
            "curve": thinned([line["loss"] for line in lines if "loss" in line]),
            "scores": [{"step": line["step"], **line["scores"]} for line in lines if "scores" in line],
            **({"gradients": over_layers(lines, self.watch)} if self.spec.watch else {}),
            "seconds": self.seconds,
            "tokens": sum(self.weight(self.indices(step)) for step in range(1, self.spec.steps + 1)),
            "parameters": {
                "all": sum(p.numel() for p in self.body.parameters()),
                "trained": sum(p.numel() for p in self.body.parameters() if p.requires_grad),
            },
            "optimizer_bytes": state_bytes(self.optimizer),
            "data": self.fingerprint,
        }


def over_layers(lines: list[dict[str, Any]], watch: Watch) -> dict[str, Any]:
    """What was watched, at each evaluation, as lists over the layers."""
    at = [{"step": line["step"], **line["gradients"]} for line in lines if "gradients" in line]
    return {"layers": [*watch.state], "at": at}


def thinned(losses: list[float], points: int = POINTS) -> list[dict[str, Any]]:
    """Means over at most so many spans of equal length, each at its last step."""
    span = -(-len(losses) // points)
    return [
        {"step": min(first + span, len(losses)), "loss": float(np.mean(losses[first : first + span]))}
        for first in range(0, len(losses), max(span, 1))
    ]
