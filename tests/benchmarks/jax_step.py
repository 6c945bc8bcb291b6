"""The peer that the papers' authors use: JAX's grad in a jitted fori_loop, written here from scratch."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.timing import Repeated

FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # one thread, as for everybody else


def available() -> bool:
    """Whether JAX is installed; sets it up for one thread and float64 before its first use."""
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    try:
        import jax
    except ModuleNotFoundError:
        return False
    jax.config.update("jax_enable_x64", True)
    return True


def factorization(weights: tuple[np.ndarray, ...], target: np.ndarray, lr: float, steps: int) -> Repeated:
    """So many steps of gradient descent on 1/2 |W_L ... W_1 - Phi|_F^2, compiled as one loop."""
    goal = _array(target)

    def loss(factors: Any) -> Any:
        return ((_product(factors) - goal) ** 2).sum() / 2

    return _descent(loss, weights, lr, steps)


def sensing(weights: tuple[np.ndarray, ...], operators: np.ndarray, outcomes: np.ndarray, lr: float) -> Repeated:
    """One step on 1/2 sum_i (<A_i, E> - y_i)^2 by product and sum over an m x d x d array, as the notebooks have it."""
    seen, results = _array(operators), _array(outcomes)

    def loss(factors: Any) -> Any:
        return (((seen * _product(factors)).sum(axis=(1, 2)) - results) ** 2).sum() / 2

    return _descent(loss, weights, lr, 1)


def _descent(loss: Callable[[Any], Any], weights: tuple[np.ndarray, ...], lr: float, steps: int) -> Repeated:
    import jax

    gradient = jax.grad(loss)

    def step(_: Any, factors: Any) -> Any:
        return jax.tree.map(lambda weight, slope: weight - lr * slope, factors, gradient(factors))

    run = jax.jit(lambda factors: jax.lax.fori_loop(0, steps, step, factors))
    start = tuple(_array(weight) for weight in weights)
    return Repeated(lambda: jax.block_until_ready(run(start)), steps)


def _product(factors: Any) -> Any:
    end = factors[0]
    for factor in factors[1:]:
        end = factor @ end
    return end


def _array(values: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(values)
