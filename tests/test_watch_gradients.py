"""What is watched of gradients: against NumPy's decompositions, torch's AdamW and GaLore's; training is left alone."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lm_experiments import checkpoints, llama, records, watch_gradients
from lm_experiments.optimize import optimizer
from lm_experiments.pretrain import Run, started
from lm_experiments.watch_gradients import Watch, gradients
from lowdim.optimizers import GaLoreAdamW
from tests.test_pretrain import check_resuming
from tests.tiny_models import without_time
from tests.tiny_texts import run, spec, written

FIRST = {"stable", "leading", "overlap_now", "held_now"}
FACTORS = {"cosine", "correlation", "spearman"}
ALL = {*FIRST, "overlap", "held", *FACTORS}
SHAPES = {"square": (12, 12), "wide": (12, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(watch_gradients, "DIGITS", 12)


def drawn(seed: int) -> dict[str, torch.Tensor]:
    """Gradients whose directions differ in strength, and whose columns do."""
    draw = np.random.default_rng(seed)
    found = {name: draw.normal(size=shape) * np.exp(draw.normal(size=shape[1])) for name, shape in SHAPES.items()}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in found.items()}


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_ranks_energies_and_overlaps_are_those_of_numpys_decompositions(exact, rank):
    watch = Watch(spec(rank=rank))
    two, others = [drawn(0), drawn(1)], [drawn(2), drawn(3)]
    first, second = (watch(*pair) for pair in zip(two, others, strict=True))
    assert first.keys() == FIRST
    for place, name in enumerate(SHAPES):
        r = min(rank, 12)
        (left, values, _), (_, before, _) = (np.linalg.svd(two[k][name].double().numpy()) for k in (1, 0))
        old, noisy = (np.linalg.svd(of[name].double().numpy())[0][:, :r] for of in (two[0], others[1]))
        inside, inside_now = (basis.T @ two[1][name].double().numpy() for basis in (old, noisy))
        expected = {
            "stable": (values**2).sum() / values[0] ** 2,
            "leading": (values[:r] ** 2).sum() / (values**2).sum(),
            "overlap": (np.linalg.svd(old.T @ left[:, :r])[1] ** 2).sum() / r,
            "held": (inside**2).sum() / (values**2).sum(),
            "overlap_now": (np.linalg.svd(noisy.T @ left[:, :r])[1] ** 2).sum() / r,
            "held_now": (inside_now**2).sum() / (values**2).sum(),
        }
        assert second.keys() == expected.keys()
        assert {key: second[key][place] for key in expected} == pytest.approx(expected, rel=1e-4)
        assert first["stable"][place] == pytest.approx((before**2).sum() / before[0] ** 2, rel=1e-4)


def test_factors_are_those_of_torchs_adamw_and_of_galore(exact):
    """Weights of zero that move at rate 1 show N; GaLore's come back through an orthonormal basis."""
    what = spec(rank=3, gap=3)
    watch, steps = Watch(what), 5
    sums = {name: np.zeros((2, shape[1])) for name, shape in SHAPES.items()}
    whole = {name: np.zeros(2) for name in SHAPES}
    weights = {name: [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)] for name, shape in SHAPES.items()}
    full = torch.optim.AdamW([pair[0] for pair in weights.values()], lr=1.0, weight_decay=0.0)
    how = {"refresh": "exact", "moments": "keep", "stagger": False, "eps": 1e-8}
    # a square gradient is projected on the right, and `gradients` has turned it: here the left side is asked for
    group = {"params": [pair[1] for pair in weights.values()], "rank": 3, "update_proj_gap": 3, "proj_type": "left"}
    low = GaLoreAdamW([{**group, "scale": 1.0}], lr=1.0, **how)
    for step in range(1, steps + 1):
        found = drawn(step)
        for name, pair in weights.items():
            for weight in pair:
                weight.grad, weight.data = found[name].clone(), torch.zeros(SHAPES[name])
        full.step()
        low.step()
        for name, pair in weights.items():
            core = low.state[pair[1]]["P0"].mT @ found[name]
            for k, (weight, seen) in enumerate(zip(pair, (found[name], core), strict=True)):
                sums[name][k] += (weight.detach().norm(dim=0) / seen.norm(dim=0)).numpy()
                whole[name][k] += float(weight.detach().norm() / seen.norm())
        watch.seen(step, found)
    measured = watch(drawn(9), drawn(8))
    for place, name in enumerate(SHAPES):
        one, other = sums[name]
        assert measured["cosine"][place] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert measured["correlation"][place] == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-4)
        assert -0.99 < measured["correlation"][place] < 0.99
        assert measured["spearman"][place] == pytest.approx(spearmanr(one, other).statistic)
        assert abs(measured["spearman"][place] - measured["correlation"][place]) > 1e-3
    one, other = np.array([*whole.values()]).T
    assert measured["cosine_of_layers"] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert abs(measured["correlation_of_layers"]) == pytest.approx(1)  # of two matrices
    assert watch(drawn(10), drawn(8)).keys() == ALL - FACTORS  # nothing was seen since


def test_gradients_have_their_shorter_side_first_as_galore_projects_them(folder):
    body, text = started(spec(), folder)
    made = optimizer(body, spec(optimizer="galore"))
    tokens = torch.from_numpy(text.train.rows(np.arange(3)))
    body(input_ids=tokens, labels=tokens).loss.backward()
    found, watch = gradients(body), Watch(spec())
    watch(found, found)
    made.step()
    for name, layer in llama.targets(body).items():
        side = 1 if len(layer.weight) >= layer.weight.shape[1] else 0
        assert torch.equal(found[name], layer.weight.grad if side == 0 else layer.weight.grad.mT)
        basis, ours = made.state[layer.weight][f"P{side}"], watch.state[name]["basis"]
        torch.testing.assert_close(ours @ ours.mT, basis @ basis.mT, rtol=0, atol=1e-4)
    assert {tuple(gradient.shape) for gradient in found.values()} == {(32, 32), (32, 88)}


def test_a_gradient_of_zero_is_recorded_as_zeros():
    watch = Watch(spec())
    found = {"a": torch.zeros(5, 7)}
    watch.seen(1, found)
    watch(found, found)
    nothing = {"overlap": [1.0], "held": [0.0]}
    assert watch(found, found) == {
        "stable": [0.0],
        "leading": [0.0],
        **nothing,
        **{f"{name}_now": value for name, value in nothing.items()},
    }


def test_factors_that_do_not_vary_are_not_correlated():
    same = torch.full((4,), 2.0)
    assert watch_gradients._alike(same, same) == {"cosine": 1.0, "correlation": 0.0, "spearman": 0.0}


# ---- in a run

WATCHED = [
    {"clip": 0.3},
    {"optimizer": "galore", "refresh": "warm", "moments": "rotate", "precision": "bf16", "accumulate": 2},
    {"optimizer": "fira", "precision": "mixed"},
]
watched = pytest.mark.parametrize("changes", WATCHED, ids=str)


@watched
def test_training_is_the_same_if_it_is_watched(folder, tmp_path, changes):
    plain, other = spec(**changes), spec(watch=True, **changes)
    found = [without_time(run(what, tmp_path / str(what.watch), folder)) for what in (plain, other)]
    assert set(found[1]) - set(found[0]) == {"gradients"}
    assert {**found[0], "gradients": found[1]["gradients"]} == found[1]
    kept = [checkpoints.latest(tmp_path / str(watch)).tensors for watch in (False, True)]
    assert {name for name in kept[1] if not name.startswith("watch/")} == kept[0].keys()
    assert all(torch.equal(kept[1][name], tensor) for name, tensor in kept[0].items())


@watched
def test_a_watched_run_goes_on_bit_for_bit(folder, tmp_path, changes):
    check_resuming(spec(watch=True, **changes), folder, tmp_path, (1, 3))


def test_the_gradients_of_an_evaluation_are_those_of_the_next_step(folder, tmp_path, monkeypatch):
    honest, seen = Run.seen, {}

    def noted(self, step):
        seen[step] = {name: gradient.double().numpy().copy() for name, gradient in gradients(self.body).items()}
        honest(self, step)

    monkeypatch.setattr(Run, "seen", noted)
    what = spec(optimizer="fira", watch=True)
    found = run(what, tmp_path, folder)["gradients"]
    assert found["layers"] == [*llama.targets(started(what, folder)[0])]
    assert [entry["step"] for entry in found["at"]] == list(what.evaluations) == [0, 3, 6, 7]
    for entry in found["at"][:-1]:
        values = [np.linalg.svd(seen[entry["step"] + 1][name])[1] for name in found["layers"]]
        np.testing.assert_allclose(entry["stable"], [(v**2).sum() / v[0] ** 2 for v in values], rtol=6e-3)
        np.testing.assert_allclose(entry["leading"], [(v[:4] ** 2).sum() / (v**2).sum() for v in values], rtol=6e-3)
    lists = {key for entry in found["at"] for key, value in entry.items() if isinstance(value, list)}
    assert lists == ALL
    assert all(len(entry[key]) == len(found["layers"]) for entry in found["at"] for key in lists & entry.keys())
    assert {*found["at"][0]} == {"step", *FIRST}
    assert {*found["at"][1]} == {"step", *ALL, *(f"{name}_of_layers" for name in FACTORS)}


def test_the_other_batch_is_the_one_after_the_next_at_the_same_weights(folder, tmp_path):
    """At the start both are known without a step."""
    what = spec(watch=True)
    now = run(what, tmp_path, folder)["gradients"]["at"][0]
    body, text = started(what, folder)
    rows, bases, grads = np.random.default_rng([0, 0]).permutation(len(text.train)), [], []
    for step in (0, 1):
        tokens = torch.from_numpy(text.train.rows(rows[4 * step : 4 * step + 4]))
        body.zero_grad()
        body(input_ids=tokens, labels=tokens).loss.backward()
        grads.append([gradient.double().numpy().copy() for gradient in gradients(body).values()])
        bases.append([np.linalg.svd(gradient)[0][:, :4] for gradient in grads[-1]])
    overlaps = [(np.linalg.svd(q.T @ p)[1] ** 2).sum() / 4 for p, q in zip(*bases, strict=True)]
    helds = [((q.T @ g) ** 2).sum() / (g**2).sum() for g, q in zip(grads[0], bases[1], strict=True)]
    np.testing.assert_allclose(now["overlap_now"], overlaps, rtol=6e-3)
    np.testing.assert_allclose(now["held_now"], helds, rtol=6e-3)


def test_watching_is_no_part_of_the_time_of_a_step(folder, tmp_path, monkeypatch):
    honest, spent = Run.seen, []

    def slow(self, step):
        begun = time.process_time()
        while time.process_time() < begun + 0.1:
            pass
        honest(self, step)
        spent.append(time.process_time() - begun)

    monkeypatch.setattr(Run, "seen", slow)
    begun = time.process_time()
    found = run(spec(watch=True), tmp_path, folder)
    assert 0 < found["seconds"] < time.process_time() - begun - sum(spent)


def test_the_record_of_a_watched_60m_model_stays_small(tmp_path):
    """56 layers, 21 evaluations."""
    what = spec(optimizer="fira", watch=True)
    entry = {"step": 10_000, **{name: [0.999] * 56 for name in ALL}, **{f"{name}_of_layers": 0.999 for name in FACTORS}}
    found = {"scores": [], "gradients": {"layers": [f"model.layers.{k}.self_attn.q_proj" for k in range(56)], "at": []}}
    found["gradients"]["at"] = [entry] * 21
    assert len(records.write(what, found, {}, tmp_path).read_text()) < 85_000
    assert json.loads(records.path(what, tmp_path).read_text())["found"] == found
    assert replace(what, watch=False).key != what.key
