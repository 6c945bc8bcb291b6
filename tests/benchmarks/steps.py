"""What is timed: one training step of a deep linear network, wide and compressed, and its peers.

Symbols: d width, L depth, r rank. All in float64, from the same orthogonal start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lowdim import compress
from sims.dynamics import Step, Weights, discrepant, gradient_descent, product
from sims.losses import Completion, Factorization
from sims.start import observed, problem_start, problem_target, to_numpy, to_torch
from tests.benchmarks import jax_step
from tests.benchmarks.timing import Call
from theory.problem import Problem

NUMPY_GEMM, TORCH_GEMM = "NumPy GEMM", "torch GEMM"
STEP, TORCH_STEP, AUTOGRAD = "NumPy step", "torch step", "torch autograd step"
JAX_STEP = "JAX grad, fori_loop"
COMPLETION = "completion step"
NARROW_STEP, NARROW_COMPLETION = "compressed step", "compressed completion"
EXACT, RANDOMIZED = "compress, exact", "compress, randomized"

DENSITY = 0.2  # share of the entries that completion observes
GAMMA = 0.01  # learning rate of the outer factors over that of the cores


@dataclass(frozen=True, eq=False)
class Training:
    """A step and the weights from which it is taken."""

    step: Step
    weights: Weights

    def __call__(self) -> Weights:
        """The weights after the step."""
        return self.step(self.weights)


def parameter_bytes(training: Training) -> int:
    """What the trained weights occupy."""
    return sum(weight.nbytes for weight in training.weights)


def problem(width: int, depth: int = 3) -> Problem:
    """Rank 5, started at eps = 0.1."""
    return Problem(width=width, depth=depth, spectrum=(1.0,) * 5, scales=0.1, lr=0.1)


def products(depth: int) -> int:
    """Products of two d x d matrices in one step, ours and autograd's: L - 1 forward and twice as many backward."""
    return 3 * (depth - 1)


def trainings(problem: Problem, only: tuple[str, ...] = ()) -> dict[str, Training]:
    """The steps in NumPy: original and compressed factorization (outer factors frozen) and completion (all trained)."""
    start, target, lr = problem_start(problem), problem_target(problem), problem.lr
    if only == (STEP,):  # nothing needs to be compressed
        return {STEP: Training(gradient_descent(Factorization(target), lr), start)}
    known = _known(problem)
    inner = compress(to_torch(*start), torch.from_numpy(target), problem.rank)
    left, right, *cores = to_numpy(inner.left, inner.right, *inner.cores)
    completion = Completion(target, known)
    outer = compress(to_torch(*start), torch.from_numpy(known * target), problem.rank)
    rates = discrepant(lr, GAMMA, len(outer.factors))
    return {
        STEP: Training(gradient_descent(Factorization(target), lr), start),
        NARROW_STEP: Training(gradient_descent(Factorization(target).inside(left, right), lr), tuple(cores)),
        COMPLETION: Training(gradient_descent(completion, lr), start),
        NARROW_COMPLETION: Training(gradient_descent(completion, rates), to_numpy(*outer.factors)),
    }


def calls(problem: Problem) -> dict[str, Call]:
    """All that is timed at one width."""
    start, target = problem_start(problem), problem_target(problem)
    weights, (goal,) = to_torch(*start), to_torch(target)
    seen = torch.from_numpy(_known(problem) * target)  # of full rank: compress has more to do than for the target
    written, filled = np.empty_like(target), torch.empty_like(goal)  # a peak has no fresh memory to wait for
    loops = 400 if problem.width < 500 else 3  # long enough for what a call costs not to show
    peers = {JAX_STEP: jax_step.factorization(start, target, problem.lr, loops)} if jax_step.available() else {}
    return {
        **peers,
        NUMPY_GEMM: lambda: np.matmul(start[0], start[1], out=written),
        TORCH_GEMM: lambda: torch.matmul(weights[0], weights[1], out=filled),
        **trainings(problem),
        TORCH_STEP: Training(gradient_descent(Factorization(goal), problem.lr), weights),
        AUTOGRAD: autograd(weights, goal, problem.lr),
        EXACT: lambda: compress(weights, seen, problem.rank),
        RANDOMIZED: lambda: compress(weights, seen, problem.rank, method="randomized"),
    }


def autograd(
    weights: tuple[torch.Tensor, ...], target: torch.Tensor, lr: float
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The step as one would write it in torch, with the update that costs least: plain SGD, in place."""
    leaves = tuple(weight.clone().requires_grad_() for weight in weights)

    def step() -> tuple[torch.Tensor, ...]:
        torch.autograd.backward(squared_error(leaves, target))
        with torch.no_grad():
            for leaf in leaves:
                assert leaf.grad is not None  # backward has just filled it
                leaf.sub_(leaf.grad, alpha=lr)
                leaf.grad = None
        return leaves

    return step


def squared_error(weights: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
    """1/2 |W_L ... W_1 - Phi|_F^2 as a tensor with a graph."""
    return (product(weights) - target).square().sum() / 2


def _known(problem: Problem) -> np.ndarray:
    shape = (problem.width, problem.width)
    return observed(shape, DENSITY, np.random.default_rng([problem.seed, 2])).astype(float)
