"""The counts behind ./run bench, without a clock."""

from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sims.dynamics import gradient_descent, rollout
from sims.losses import Factorization, Sensing
from sims.start import problem_start, problem_target, sensing_operators, to_torch
from tests.benchmarks import adapters, eight_bit, jax_step, kernel, low_rank_backward, optimizers, seen, steps
from tests.benchmarks.__main__ import PEERS, SHRUNK, main
from tests.benchmarks.timing import Repeated, machine, medians, peak_bytes


class Counted(np.ndarray):
    """An array that writes down the floating-point operations of its matrix products."""

    flops: ClassVar[list[int]] = []

    def __matmul__(self, other: np.ndarray) -> np.ndarray:  # type: ignore[override]
        Counted.flops.append(2 * len(self) * self.shape[1] * other.shape[1])
        return super().__matmul__(other)


def graph_products(node: Any) -> int:
    """Of an autograd graph: each product is one forward, and one backward for each factor that needs a gradient."""
    below = [child for child, _ in node.next_functions if child is not None]
    return (node.name() == "MmBackward0") * (1 + len(below)) + sum(map(graph_products, below))


def flops(training: steps.Training) -> list[int]:
    """Of each matrix product in one step."""
    Counted.flops.clear()
    training.step(tuple(weight.view(Counted) for weight in training.weights))
    return list(Counted.flops)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("name", [steps.STEP, steps.COMPLETION])
def test_a_step_takes_three_products_for_each_layer_but_one(depth: int, name: str) -> None:
    found = flops(steps.trainings(steps.problem(20, depth))[name])
    assert found == [2 * 20**3] * steps.products(depth)
    assert len(found) == 3 * (depth - 1)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_autograd_takes_as_many_products_and_the_same_step(depth: int) -> None:
    problem = steps.problem(20, depth)
    weights, (target,) = to_torch(*problem_start(problem)), to_torch(problem_target(problem))
    peers = steps.autograd(weights, target, problem.lr)()
    assert graph_products(steps.squared_error(peers, target).grad_fn) == steps.products(depth)
    for peer, ours in zip(peers, steps.trainings(problem)[steps.STEP](), strict=True):
        np.testing.assert_allclose(peer.detach().numpy(), ours, atol=1e-15)  # entries are about 0.1


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_compressed_steps_multiply_only_narrow_matrices(depth: int) -> None:
    width, core = 40, 10  # d and 2r
    found = steps.trainings(steps.problem(width, depth))
    assert flops(found[steps.NARROW_STEP]) == [2 * core**3] * steps.products(depth)
    all_trained = flops(found[steps.NARROW_COMPLETION])
    assert len(all_trained) == steps.products(depth + 2)
    # E, dl/dleft and left^T G have two wide sides, no product has three
    assert sorted(all_trained)[-3:] == [2 * width**2 * core] * 3
    assert max(sorted(all_trained)[:-3]) == 2 * width * core**2


@pytest.mark.parametrize(("width", "depth"), [(20, 2), (40, 3), (60, 5)])
def test_compression_leaves_so_many_parameters(width: int, depth: int) -> None:
    rank, found = 5, steps.trainings(steps.problem(width, depth))
    ratio = {
        call: steps.parameter_bytes(found[peer]) / steps.parameter_bytes(found[call]) for call, peer in SHRUNK.items()
    }
    assert steps.parameter_bytes(found[steps.STEP]) == 8 * depth * width**2
    assert ratio[steps.NARROW_STEP] == (width / (2 * rank)) ** 2
    assert ratio[steps.NARROW_COMPLETION] == depth * width**2 / (4 * depth * rank**2 + 4 * width * rank)


def test_a_step_holds_at_most_l_plus_1_matrices_at_once() -> None:
    wide, slack = 8 * 200**2, 1.03  # bytes of a matrix; lists and array headers
    found = steps.trainings(steps.problem(200))
    assert peak_bytes(found[steps.STEP]) <= slack * 4 * wide
    assert peak_bytes(found[steps.COMPLETION]) <= slack * 4 * wide
    # E and E - Phi stay dense; the rest is a few d x 2r
    assert peak_bytes(found[steps.NARROW_COMPLETION]) <= slack * 2 * wide + 6 * 8 * 200 * 10
    assert peak_bytes(found[steps.NARROW_STEP]) < wide / 30


def test_competitors_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    assert list(medians(calls, rounds=3)) == ["a", "b", "c"]
    assert [name for name, _ in groupby(order)] == ["a", "b", "c"] * 4  # warm-up, then three rounds


def test_a_call_of_many_steps_counts_as_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.process_time", lambda: float(next(clock)))  # every reading is one second later
    assert medians({"one": lambda: None, "many": Repeated(lambda: None, 10)}, rounds=3) == {"one": 1.0, "many": 0.1}


@pytest.mark.parametrize("kind", ["factorization", "sensing"])
def test_jax_takes_the_same_steps(kind: str) -> None:
    pytest.importorskip("jax", reason="JAX is in the extra `bench` alone")
    assert jax_step.available()
    problem, count = steps.problem(20), 3
    start, target = problem_start(problem), problem_target(problem)
    if kind == "sensing":
        operators, count = sensing_operators(30, (20, 20), np.random.default_rng(0)), 1
        outcomes = operators.reshape(30, -1) @ target.ravel()
        step = gradient_descent(Sensing(operators, outcomes), problem.lr)
        theirs = jax_step.sensing(start, operators, outcomes, problem.lr)()
    else:
        step = gradient_descent(Factorization(target), problem.lr)
        theirs = jax_step.factorization(start, target, problem.lr, count)()
    *_, ours = rollout(step, start, count)
    for found, peer in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, np.asarray(peer), atol=1e-15)  # entries are about 0.1


def test_the_sensing_steps_are_one_step() -> None:
    calls = seen.sensing_calls(20, 30)
    for found, peer in zip(calls[seen.BLOCKED](), calls[seen.ELEMENTWISE](), strict=True):
        np.testing.assert_allclose(found, peer, atol=1e-15)


def test_the_completion_steps_are_one_step() -> None:
    calls = seen.completion_calls(30, 0.3)
    for found, peer in zip(calls[seen.DENSE](), calls[seen.SPARSE](), strict=True):
        np.testing.assert_allclose(found, peer, atol=1e-15)


def test_the_three_ways_to_a_tangent_kernel_agree() -> None:
    pytest.importorskip("transformers")
    network, (left, right) = kernel.TINY.network(), kernel.TINY.batches()
    found = kernel.ours(network, left, right)
    assert found.shape == (3, 6)
    for peer in (kernel.naive, kernel.pairs):
        np.testing.assert_allclose(peer(network, left, right), found, rtol=0, atol=1e-4 * float(found.abs().max()))
    assert kernel.error(kernel.TINY)[kernel.OURS] < 1e-6
    product = kernel.calls(kernel.TINY)[kernel.VECTOR]()
    np.testing.assert_allclose(product[:, 0], found.sum(1), rtol=1e-5)


def test_sensing_holds_its_operators_once_and_little_else() -> None:
    """4000 operators of 200 x 200 are 1.19 GiB; at a tenth of it, a step adds less than 3 %."""
    line = seen.sensing_peak(200, 400)
    assert float(line.rpartition(" ")[2]) < 1.03 * 400 * 200**2 * 8 / 2**30


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_the_tables_name_every_call_peer_and_target(capsys: pytest.CaptureFixture[str]) -> None:
    main(sizes=(20, 40), rounds=2)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    pairs = [pair for pair in PEERS if steps.JAX_STEP not in pair or jax_step.available()]
    speed, others = rows[: 2 * len(pairs)], rows[2 * len(pairs) :]
    assert [(row[0], row[1], row[5]) for row in speed] == [
        (call, d, peer) for call, peer in pairs for d in ("20", "40")
    ]
    assert [(row[0], row[4]) for row in others[:8]] == [pair for pair in SHRUNK.items() for _ in range(2)] * 2
    assert {row[1] for row in others[8:] if row[0] == "reduced step"} == {"20", "40", "100", "1000", "10000", "100000"}
    assert [others.pop()[0] for _ in eight_bit.names()] == eight_bit.names()[::-1]
    if low_rank_backward.available():
        assert others.pop()[:2] == ["4", "2 x 8"]  # rank, tokens
    assert [others.pop()[:2] for _ in optimizers.makers()] == [[name, "4"] for name in optimizers.makers()][::-1]
    if adapters.available():
        assert others.pop()[:2] == ["8", "2 x 8"]  # rank, tokens
    if kernel.available():
        assert others.pop()[:4] == ["1", "8", "3", "223"]  # layers, tokens, n, thousands of parameters
    assert [row[:2] for row in others[-10:-8]] == [["20", "1%"], ["20", "2%"]]
    for unit in ("[ms]", "[kB]", "[us]", "[GiB]", "[CPU s]"):
        assert unit in printed
    peers = 3 * jax_step.available() + 4 * kernel.available() + 5 * adapters.available()
    peers += 2 * eight_bit.available(eight_bit.THEIRS) + eight_bit.available(eight_bit.COMPILED)
    peers += 2 * low_rank_backward.available()
    peers += sum(peer in optimizers.makers() for peer in optimizers.PEER.values())
    assert printed.count("reached") == 10 + peers


def test_the_machine_is_named() -> None:
    processor, numpys, torchs = machine().splitlines()
    assert processor.split(";")[0]
    assert np.__version__ in numpys
    assert "threads: " in torchs


@pytest.mark.skipif(not adapters.available(), reason="needs transformers and PEFT")
@pytest.mark.parametrize("rank", [2, 8])
def test_a_compressed_adapter_has_l_r_squared_more_parameters_a_layer_than_lora(rank: int) -> None:
    size = replace(adapters.TINY, rank=rank)
    deep, lora = (adapters.trained(size.adapted(name)) for name in (adapters.DEEP, adapters.LORA))
    assert deep - lora == 7 * size.layers * 3 * rank**2


def saved_and_multiplied(name: str, size: adapters.Size) -> tuple[int, int]:
    """Bytes that the forward pass keeps for the backward one, weights aside; operations of both."""
    model, inputs = size.adapted(name), size.inputs()
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        model(**inputs).loss.backward()
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights), counter.get_total_flops()


@pytest.mark.skipif(not adapters.available(), reason="needs transformers and PEFT")
def test_a_compressed_adapter_keeps_and_multiplies_hardly_more_than_lora() -> None:
    size = replace(adapters.Size(), layers=2, words=100)
    deep, lora = (saved_and_multiplied(name, size) for name in (adapters.DEEP, adapters.LORA))
    assert 0 < deep[0] < 1.05 * lora[0]
    assert 0 < deep[1] < 1.01 * lora[1]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_the_optimizer_steps_are_one_step() -> None:
    """The first of Adam, before anything has been coded."""
    trained = {}
    for name in eight_bit.names():
        trained[name], step = eight_bit.training(name, 5000)
        step()
    for parameter in trained.values():
        torch.testing.assert_close(parameter, trained[eight_bit.FUSED])
        assert parameter.abs().max() > 1e-4
