"""An MLP that classifies images, its last linear map plain, overparameterised, or that and compressed.

original: features -> W -> classes. + DLN: W = W_L ... W_1, as wide as the features inside, each factor eps times a
(semi-)orthogonal matrix. + C-DLN: the L factors of `lowdim.spectral`, from the gradient at W = 0 (Kwon et al. 2023,
arXiv 2311.05061). Heads have no biases, so that each is a linear map and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lm_experiments.tasks.fashion_mnist import CLASSES, read_images
from lowdim import spectral

HEADS = ORIGINAL, DLN, COMPRESSED = "original", "+ DLN", "+ C-DLN"
MOMENTUM = 0.9
Arrays = dict[str, np.ndarray]
Factors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Classifier:
    """An MLP, its head, its images and its training: one cell of a sweep."""

    head: str = ORIGINAL
    """The linear map from features to classes: original, + DLN or + C-DLN."""
    rate: float = 0.1
    """eta at its largest."""
    seed: int = 0
    """Seeds the split, the start and the batches; the same for all heads."""
    images: Path | None = None
    """A folder with the four IDX files of Fashion-MNIST; without one, those that ./run assets fetches."""
    contents: str = ""
    """Hash of that folder's files, which `fingerprint` gives, so that a kept cell is of these images."""
    training: int = 55_000
    """So many training images, drawn from the first `training` + `validation`."""
    validation: int = 5_000
    """So many others, on which eta is chosen."""
    test: int = 10_000
    """So many test images."""
    width: int = 256
    """Units of each of the two ReLU layers, and of the hidden layers of the DLN."""
    depth: int = 3
    """L, the factors of the DLN and of the C-DLN."""
    rank: int = CLASSES - 1
    """Width of the C-DLN. The gradient has rank 9, since the errors of softmax sum to zero over the classes."""
    scale: float = 1.0
    """eps of each factor; the original starts at eps^L times a semi-orthogonal matrix."""
    alpha: float = 1.0
    """Learning rate of the outer factors of the C-DLN over that of all else."""
    surrogate: int = 2048
    """Training images from which the C-DLN takes the gradient for its start."""
    batch: int = 128
    """Images in a step."""
    steps: int = 1250
    """The paper's."""
    every: int = 250
    """Measure after so many steps; divides `steps`."""

    def __post_init__(self) -> None:
        if self.head not in HEADS or self.depth < 2 or not 1 <= self.rank < CLASSES or self.width < CLASSES:
            raise ValueError(
                f"head = {self.head!r}, depth = {self.depth}, rank = {self.rank}, width = {self.width}: take one of "
                f"{', '.join(HEADS)}, depth >= 2, 1 <= rank <= {CLASSES - 1}, width >= {CLASSES}"
            )
        if min(self.rate, self.scale, self.alpha) <= 0 or self.steps % self.every or self.training < self.batch:
            raise ValueError(
                f"rate = {self.rate}, scale = {self.scale}, alpha = {self.alpha}, steps = {self.steps}, every = "
                f"{self.every}, training = {self.training}, batch = {self.batch}: take positive numbers, `every` that "
                "divides `steps` and no more images in a batch than in training"
            )

    def share(self, step: int) -> float:
        """Of the rate, at a step from 0 on: up over the first tenth, without which deep heads overshoot, then to 0."""
        rise = max(self.steps // 10, 1)
        return min((step + 1) / rise, (self.steps - step) / (self.steps - rise + 1))


class Network:
    """Two ReLU layers and a head; `head` holds its factors in the order in which they act."""

    def __init__(self, cell: Classifier, pixels: Tensor, labels: Tensor) -> None:
        """pixels (images, inputs) and labels: what the C-DLN takes its start from."""
        random = _generator(cell, 1)
        sizes = pairwise((pixels.shape[1], cell.width, cell.width))
        layers = [torch.randn(after, before, generator=random) * (2 / before) ** 0.5 for before, after in sizes]
        self.layers = [(layer.requires_grad_(), torch.zeros(len(layer), requires_grad=True)) for layer in layers]
        with torch.no_grad():
            self.head = tuple(factor.contiguous().requires_grad_() for factor in self._start(cell, pixels, labels))

    def _start(self, cell: Classifier, pixels: Tensor, labels: Tensor) -> Factors:
        if cell.head == COMPRESSED:
            signal = (one_hot(labels, CLASSES) - 1 / CLASSES).T @ self.features(pixels)  # minus the gradient at W = 0
            return spectral(signal, cell.rank, cell.depth, cell.scale).factors
        random = _generator(cell, 2)
        if cell.head == ORIGINAL:
            return (cell.scale**cell.depth * _orthogonal(CLASSES, cell.width, random),)
        hidden = [_orthogonal(cell.width, cell.width, random) for _ in range(cell.depth - 1)]
        return tuple(cell.scale * factor for factor in (*hidden, _orthogonal(CLASSES, cell.width, random)))

    def features(self, pixels: Tensor) -> Tensor:
        """(images, inputs), bytes -> (images, width)."""
        scaled = pixels.float() / 255
        return reduce(lambda x, layer: torch.relu(torch.addmm(layer[1], x, layer[0].T)), self.layers, scaled)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(images, inputs), bytes -> (images, classes), logits."""
        return reduce(lambda x, factor: x @ factor.T, self.head, self.features(pixels))

    def parameters(self, cell: Classifier) -> dict[Tensor, float]:
        """What is trained, and its rate over the cell's: alpha for the outer factors of the C-DLN."""
        rates = dict.fromkeys((*(part for layer in self.layers for part in layer), *self.head), 1.0)
        return rates | (dict.fromkeys((self.head[0], self.head[-1]), cell.alpha) if cell.head == COMPRESSED else {})

    @torch.no_grad()
    def accuracy(self, pixels: Tensor, labels: Tensor) -> float:
        """Share of the images that are classified right."""
        return float((self(pixels).argmax(1) == labels).float().mean())


def train(cell: Classifier) -> Arrays:
    """Train one classifier: from `steps` = 0 on, at each measurement, `seconds` of CPU time (with the start, without
    measuring), the mean `loss` over the batches since the last one, and `accuracy` on the test images; at the end,
    `validation` accuracy (0 after an overflow), and of the head: `parameters`, `movement` of its middle factor
    (singular values) and `drift` of the sum over the classes, |1^T (W_L - W_L(0))| / |W_L(0)|_F.
    """
    pixels, labels, *test = _images(cell)
    order = torch.randperm(len(pixels), generator=_generator(cell, 0))
    validation, training = order[: cell.validation], order[cell.validation :]
    begun, seen = process_time(), training[: cell.surrogate]
    network = Network(cell, pixels[seen], labels[seen])
    start = [factor.detach().clone() for factor in network.head]
    descend = _momentum(network.parameters(cell))
    spent, losses = process_time() - begun, []
    rows = [(0, spent, np.nan, network.accuracy(*test))]
    for step, batch in zip(range(1, cell.steps + 1), _batches(cell, training), strict=False):
        begun = process_time()
        loss = cross_entropy(network(pixels[batch]), labels[batch])
        descend(loss, cell.rate * cell.share(step - 1))
        losses.append(float(loss.detach()))
        spent += process_time() - begun
        if step % cell.every == 0:
            rows.append((step, spent, float(np.mean(losses[-cell.every :])), network.accuracy(*test)))
    curves = dict(zip(("steps", "seconds", "loss", "accuracy"), np.array(rows).T, strict=True))
    score = network.accuracy(pixels[validation], labels[validation]) if np.isfinite(losses[-1]) else 0.0
    return {**curves, "validation": np.array(score), **_head_measures(network.head, start)}


def _momentum(rates: dict[Tensor, float]) -> Callable[[Tensor, float], None]:
    """One step down a loss, of torch.optim.SGD's form; that class itself imports a compiler within the first run."""
    velocities = [torch.zeros_like(tensor) for tensor in rates]

    def descend(loss: Tensor, rate: float) -> None:
        gradients = torch.autograd.grad(loss, list(rates))
        with torch.no_grad():
            for (tensor, ratio), velocity, gradient in zip(rates.items(), velocities, gradients, strict=True):
                velocity.mul_(MOMENTUM).add_(gradient)
                tensor.sub_(velocity, alpha=ratio * rate)

    return descend


@torch.no_grad()
def _head_measures(head: Factors, start: list[Tensor]) -> Arrays:
    moved = [after - before for after, before in zip(head, start, strict=True)]
    middle = moved[len(head) // 2]
    values = torch.linalg.svdvals(middle) if middle.isfinite().all() else torch.full((min(middle.shape),), torch.nan)
    return {
        "parameters": np.array(sum(factor.numel() for factor in head)),
        "movement": values.numpy(),
        "drift": (moved[-1].sum(0).norm() / start[-1].norm()).numpy(),
    }


def _images(cell: Classifier) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels (images, inputs) and labels for training and validation, and for the test."""
    return (
        *_read(cell.images, "train", cell.training + cell.validation, cell.contents),
        *_read(cell.images, "t10k", cell.test, cell.contents),
    )


@cache
def _read(folder: Path | None, part: Literal["train", "t10k"], count: int, contents: str) -> tuple[Tensor, Tensor]:
    images = read_images(part, folder, count)
    if len(images.labels) < count:
        raise ValueError(f"{folder} has {len(images.labels)} images in {part}, not {count}: ask for fewer")
    return torch.tensor(images.pixels).flatten(1), torch.tensor(images.labels).long()


def _batches(cell: Classifier, training: Tensor) -> Iterator[Tensor]:
    """Indices of one batch after the other, each image once a pass; what is left of a pass is dropped."""
    random = _generator(cell, 3)
    while True:
        passed = training[torch.randperm(len(training), generator=random)]
        for begin in range(0, len(passed) - cell.batch + 1, cell.batch):
            yield passed[begin : begin + cell.batch]


def _orthogonal(rows: int, cols: int, random: torch.Generator) -> Tensor:
    return torch.nn.init.orthogonal_(torch.empty(rows, cols), generator=random)


def _generator(cell: Classifier, purpose: int) -> torch.Generator:
    """Split, layers, head and batches have one each, so that no head shifts the others' random numbers."""
    return torch.Generator().manual_seed(4 * cell.seed + purpose)
