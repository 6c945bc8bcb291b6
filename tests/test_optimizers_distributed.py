"""Two processes under torchrun, with gloo on the CPU: each way of sharing a model trains as one process does.

One start (tests/optimizers_in_two_processes.py) serves all tests. Sums over processes come in another order: weights
agree to 1e-9 in float64, which seven steps and three refreshes may amplify, and no more.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowdim.optimizers import GaLoreAdamW
from tests.optimizers_in_two_processes import GAP, RANK, REPLICAS, SHARDED, STEPS, Net, divided, groups, replicas

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process has left."""
    place = tmp_path_factory.mktemp("two")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, ROOT / "tests" / "optimizers_in_two_processes.py", place], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def assert_close(one: dict, other: dict, atol: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        moved = float((value.double() - Net().get_parameter(name)).detach().abs().max())
        assert moved > 1e-5, name


def test_there_are_two(found):
    assert [one["processes"] for one in found] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("name", REPLICAS)
def test_replicas_train_as_one_process_with_the_whole_batch(found, name):
    """Also where hooks use gradients up before DDP could average them, and where it never sees the weights at all."""
    assert_equal(found[0][name], found[1][name])
    assert_close(found[0][name], replicas(0, 1, **REPLICAS[name]))


def test_between_refreshes_processes_exchange_cores(found):
    """r / min(m, n) of each weight; DDP's buckets have the rest of the model alone."""
    model = Net()
    optimizer = GaLoreAdamW(groups(model), stagger=False)
    linear = [plan.shape for p, plan in optimizer.plans.items() if plan.name != "kernel.weight"]
    rest = sum(p.numel() for p in model.parameters()) - sum(m * n for m, n in linear)
    for one in found:
        assert one["exchanged"]["buckets"] == [rest] * STEPS
        for step, count in enumerate(one["exchanged"]["ours"]):
            whole = step % GAP == 0
            assert count == sum(m * n if whole else RANK * max(m, n) for m, n in linear)


def test_ddp_around_a_layerwise_optimizer_is_refused(found):
    for one in found:
        assert "has a gradient that came after its layer-wise update: leave the model without" in one["wrapped layers"]


@pytest.mark.parametrize("name", SHARDED)
def test_divided_weights_train_as_whole_ones(found, name):
    run = SHARDED[name]
    alone = divided(0, 1, **{key: value for key, value in run.items() if key != "mesh"})
    rounded = {"few bits": 1e-3, "half": 0.05}.get(name, 1e-9)
    for one in found:
        assert_close(one[f"fsdp {name}"]["weights"], alone["weights"], rounded)
    assert_equal(found[0][f"fsdp {name}"]["weights"], found[1][f"fsdp {name}"]["weights"])


@pytest.mark.parametrize("name", SHARDED)
def test_a_run_with_divided_weights_resumes_to_the_last_bit(found, name):
    for one in found:
        assert_equal(one[f"fsdp {name}"]["weights"], one[f"fsdp {name}"]["resumed"])


@pytest.mark.parametrize("kind", ["adamw", "fira", "apollo", "sgd", "first"])
def test_also_from_a_folder_that_each_process_writes_its_part_of(found, kind):
    """torch.distributed.checkpoint loads into states that are there: an optimizer that has not stepped needs some."""
    for one in found:
        assert_equal(one[f"folder {kind}"]["weights"], one[f"folder {kind}"]["resumed"])


def test_parameters_may_be_divided_when_the_optimizer_is_there_already(found):
    for one in found:
        assert_close(one["swapped"], divided(0, 1, "fira")["weights"])


@pytest.mark.parametrize("name", [name for name in SHARDED if name != "half"])
def test_the_whole_state_is_that_of_one_process(found, name):
    run = SHARDED[name]
    alone = divided(0, 1, **{key: value for key, value in run.items() if key != "mesh"})["state"]["state"]
    for parameter, state in found[0][f"fsdp {name}"]["state"]["state"].items():
        assert state.keys() == alone[parameter].keys()
        for key, value in state.items():
            assert value.shape == alone[parameter][key].shape, (parameter, key)
            assert value.dtype == alone[parameter][key].dtype, (parameter, key)
            if not value.ndim:  # counters, and the norm that Fira and APOLLO hold to; bases may differ by signs
                torch.testing.assert_close(value, alone[parameter][key], rtol=1e-6, atol=0)


def test_moments_are_divided_where_the_columns_are_projected(found):
    """Of the numbers that one process holds, bases are whole in both, and so are the moments of R = P^T G."""
    sizes = {name: [one[f"fsdp {name}"]["local"] for one in found] for name in ("adamw right", "adamw left")}
    alone = {side: divided(0, 1, "adamw", side)["local"] for side in ("right", "left")}
    model = Net()
    plans = GaLoreAdamW(groups(model, "right")).plans
    outside = [p for p in model.parameters() if p not in plans]
    counters = len(outside) + len(plans)
    bases = {mode: sum(plan.shape[mode] * RANK for plan in plans.values()) for mode in (0, 1)}
    moments = {mode: 2 * sum(plan.shape[1 - mode] * RANK for plan in plans.values()) for mode in (0, 1)}
    plain = 2 * sum(p.numel() for p in outside)
    assert alone["right"] == counters + bases[1] + moments[1] + plain
    assert sum(sizes["adamw right"]) == 2 * (counters + bases[1]) + moments[1] + plain
    assert sum(sizes["adamw left"]) == 2 * (counters + bases[0] + moments[0]) + plain


def test_what_cannot_be_divided_is_refused_by_both(found):
    assert found[0]["refusals"] == found[1]["refusals"]
    words = found[0]["refusals"]
    assert "takes means over whole matrices, and these are divided among processes (FSDP2)" in words["adafactor"]
    assert "state = '8bit' of weights divided among processes (FSDP2): blocks have no rows" in words["bytes"]
    assert "FSDP2 has divided these weights" in words["layerwise"]
    assert "it does not see cores" in words["backward"]
    assert "weight is divided as (Shard(dim=1),): only rows, divided once" in words["columns"]
    assert "the gradient of wide.weight is not finite" in words["not finite"]
    assert words["changed"] == "False"


def test_between_refreshes_little_is_summed(found):
    """The right side: nothing, and for Fira and APOLLO one number a weight. The left side: R, and Fira's |G_j|."""
    widths = [plan.shape[1] for plan in GaLoreAdamW(groups(Net(), "left")).plans.values()]
    for one in found:
        assert one["summed"]["right"] == []
        assert one["summed"]["left"] == [RANK * width for width in widths]
        assert one["summed"]["fira right"] == one["summed"]["apollo right"] == [1] * len(widths)
        assert one["summed"]["fira left"] == [count for width in widths for count in (RANK * width, width)]
