"""Deep linear and ReLU classifiers under full-batch gradient descent, and how far each layer sets the classes apart.

Symbols: X inputs (d x N), Y one-hot labels (K x N), n = N / K samples a class, H_l the features after layer l, H_0 = X.

    loss = 1/2 |W_L H_{L-1} - Y|_F^2,   H_l = f(W_l H_{l-1}),   f the identity (linear) or max(0, .) (relu).

Papers that average over the K N numbers of Y and step by s step by s / (K N) here.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

from sims.dynamics import Step, Weights, gradient_descent
from sims.losses import Factorization, Loss, Regression
from sims.start import haar

Matrix = Float64[np.ndarray, "_ _"]
Activation = Literal["linear", "relu"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples and their classes. Raises ValueError unless each sample has a label and each class a sample."""

    inputs: Float64[np.ndarray, "inputs samples"]
    """X, one column a sample."""
    labels: Int[np.ndarray, " labels"]
    """The class of each sample, 0, ..., K - 1."""

    def __post_init__(self) -> None:
        if len(self.labels) != self.inputs.shape[1]:
            raise ValueError(f"{len(self.labels)} labels for {self.inputs.shape[1]} samples: give each sample one")
        if len(self.labels) == 0 or (found := np.unique(self.labels)).tolist() != list(range(len(found))):
            raise ValueError("the labels must be 0, ..., K - 1, and each class needs a sample; renumber the classes")

    @property
    def outputs(self) -> Float64[np.ndarray, "classes samples"]:
        """Y."""
        return np.eye(self.labels.max() + 1)[:, self.labels]

    @property
    def signal(self) -> Float64[np.ndarray, "classes inputs"]:
        """Y X^T: what a linear network on whitened data factorizes."""
        return self.outputs @ self.inputs.T


def whitened(classes: int, samples: int, width: int, rng: np.random.Generator) -> Labelled:
    """Haar inputs with X X^T = I_d, `samples` of them a class, in the order of the classes.

    Raises ValueError for more dimensions than samples: X X^T would be singular.
    """
    if not 1 <= width <= classes * samples:
        raise ValueError(
            f"width = {width} for {classes} x {samples} samples: X X^T = I needs 1 <= width <= {classes * samples}"
        )
    return Labelled(haar(width, classes * samples, rng), np.repeat(np.arange(classes), samples))


def linear_loss(data: Labelled) -> Loss:
    """The loss as a function of E = W_L ... W_1, up to a constant: a factorization if X X^T = I, else a regression.

    1/2 |E X - Y|^2 = 1/2 |E - Y X^T|^2 + 1/2 (|Y|^2 - |Y X^T|^2) on whitened data; for N = d the constant is 0.
    """
    defect = data.inputs @ data.inputs.T - np.eye(len(data.inputs))
    return Factorization(data.signal) if np.abs(defect).max() < 1e-12 else Regression(data.inputs, data.outputs)


def features(weights: Weights, inputs: Matrix, activation: Activation) -> tuple[Matrix, ...]:
    """H_0 = X, H_1, ..., H_{L-1}: what goes into each layer."""
    found = [inputs]
    for weight in weights[:-1]:
        after = weight @ found[-1]
        found.append(np.maximum(after, 0) if activation == "relu" else after)
    return tuple(found)


def loss_value(weights: Weights, data: Labelled, activation: Activation) -> float:
    """1/2 |W_L H_{L-1} - Y|_F^2."""
    return float(((weights[-1] @ features(weights, data.inputs, activation)[-1] - data.outputs) ** 2).sum()) / 2


def backpropagation(weights: Weights, data: Labelled) -> Weights:
    """d loss / dW_l of the ReLU network, l = 1, ..., L.

    D_L = W_L H_{L-1} - Y,  D_l = (W_{l+1}^T D_{l+1}) * [H_l > 0],  d loss / dW_l = D_l H_{l-1}^T.
    """
    below = features(weights, data.inputs, "relu")
    passed = weights[-1] @ below[-1] - data.outputs
    found = [passed @ below[-1].T]
    for weight, (before, after) in zip(reversed(weights), reversed(list(pairwise(below))), strict=False):
        passed = (weight.T @ passed) * (after > 0)
        found.append(passed @ before.T)
    return tuple(reversed(found))


def descent(data: Labelled, lr: float, activation: Activation, decay: float = 0.0) -> Step:
    """W_l <- (1 - eta lam) W_l - eta d loss / dW_l, all layers at once."""
    if activation == "linear":
        return gradient_descent(linear_loss(data), lr, decay)

    def step(weights: Weights) -> Weights:
        found = zip(weights, backpropagation(weights, data), strict=True)
        return tuple((1 - lr * decay) * weight - lr * gradient for weight, gradient in found)

    return step


def separation(layer: Matrix, labels: Int[np.ndarray, " samples"]) -> float:
    """D = tr(Sigma_W) / tr(Sigma_B) of one layer's features, one column a sample: 0 if the classes have collapsed.

    Sigma_W averages over the samples, tr(Sigma_W) = 1/N sum_i |h_i - mean of its class|^2; Sigma_B over the classes,
    tr(Sigma_B) = 1/K sum_k |mean of class k - mean of all|^2. After Yaras et al. 2023, arXiv 2306.01154.
    """
    means = np.stack([layer[:, labels == label].mean(axis=1) for label in range(labels.max() + 1)], axis=1)
    within = ((layer - means[:, labels]) ** 2).sum() / len(labels)
    between = ((means - layer.mean(axis=1, keepdims=True)) ** 2).sum() / means.shape[1]
    return float(within / between)


def separations(weights: Weights, data: Labelled, activation: Activation) -> Float64[np.ndarray, " depth"]:
    """D_0, ..., D_{L-1}: the inputs, and the features after each hidden layer."""
    return np.array([separation(layer, data.labels) for layer in features(weights, data.inputs, activation)])
