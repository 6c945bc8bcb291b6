"""Deep LoRA and GaLore from one first gradient: one function finds what both train in, and what is watched of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from lm_experiments import adapt
from lm_experiments.adapt import adapted, optimizer
from lm_experiments.experiments import EXPERIMENTS
from lm_experiments.finetune import Stopped
from lm_experiments.setting import Setting
from lm_experiments.watch import Watch
from lowdim import narrow, subspace
from lowdim.optimizers import GaLoreAdamW, bases
from tests.test_finetune import assert_equal, stopping
from tests.tiny_models import HERE, made, run, spec, without_time


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"))


def meeting(folder: Path, method: str, **changes):
    return spec(
        folder, **{"method": method, "dropout": 0.0, "watch": True, "every": 2, "steps": 6, "batch": 12, **changes}
    )


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith("classifier")}


def first_gradients(what, folder) -> dict[str, np.ndarray]:
    """By plain autograd, of the first batch."""
    setting = Setting(what, folder, HERE.device)
    batch = setting.train.batch(np.random.default_rng([what.seed, 0]).permutation(len(setting.train))[: what.batch])
    setting.loss(setting.model, batch).backward()
    return {name: layer.weight.grad.numpy() for name, layer in layers(setting.model).items()}


def clear(gradients: dict[str, np.ndarray]) -> list[bool]:
    """Whether each has four directions above rounding: what follows the last token's, say, has fewer."""
    values = [np.linalg.svd(gradient, compute_uv=False) for gradient in gradients.values()]
    found = [bool(v[3] > 1e-3 * v[0]) for v in values]
    assert sum(found) >= len(found) / 3
    return found


def test_one_function_finds_the_subspaces_of_both_in_the_same_gradients(folder, tmp_path, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}

    def counted(name):
        def leading(matrix, *arguments, **options):
            seen.setdefault(name, []).append(matrix.clone())
            return subspace.leading_subspace(matrix, *arguments, **options)

        return leading

    for name, module in {"compressed": narrow, "galore": bases}.items():
        assert module.leading_subspace is subspace.leading_subspace
        monkeypatch.setattr(module, "leading_subspace", counted(name))
        run(meeting(folder, name, watch=False), tmp_path / name, folder)
    expected = first_gradients(meeting(folder, "galore"), folder)
    assert len(seen["compressed"]) == len(seen["galore"]) == len(expected)
    for gradient in expected.values():
        for name, sign in (("compressed", -1), ("galore", 1)):
            distances = [np.abs(m.numpy() - sign * gradient).max() for m in seen[name] if m.shape == gradient.shape]
            assert min(distances) < 1e-5 * np.abs(gradient).max(), name


@pytest.mark.parametrize("method", ["compressed", "galore"])
def test_what_is_trained_in_is_the_first_gradients_leading_subspace(folder, tmp_path, method):
    """Deep LoRA's outer factors rest at gamma = 0; GaLore's bases are the first ones for GAP steps."""
    found = run(meeting(folder, method, gamma=0.0), tmp_path, folder)["first"]
    seen = clear(first_gradients(meeting(folder, method), folder))
    assert list(found) == ["2", "4", "6"]
    for entry in found.values():
        assert len(entry["basis"]) == len(entry["update"]) == len(seen)
        np.testing.assert_allclose(np.array(entry["basis"])[seen], 1, atol=1e-3)
        if method == "galore":
            np.testing.assert_allclose(entry["update"], 1, atol=1e-4)
        else:
            assert 0.1 < np.mean(entry["update"]) < 1 + 1e-4


def test_shares_and_cosines_are_scipys(folder, tmp_path, monkeypatch):
    """With other subspaces after every second step: the first one has less and less of the update."""
    monkeypatch.setattr(adapt, "GAP", 2)
    kept, honest, what = {}, Watch.inside, meeting(folder, "galore")

    def watching(self, model, made_by):
        found = honest(self, model, made_by)
        weights = {name: layer.weight for name, layer in layers(model).items()}
        held = {name: next(iter(made_by.bases(w, torch.float32).values())).numpy() for name, w in weights.items()}
        kept[len(kept)] = found, {name: w.detach().clone().numpy() for name, w in weights.items()}, held
        return found

    monkeypatch.setattr(Watch, "inside", watching)
    run(what, tmp_path, folder)
    gradients, start = first_gradients(what, folder), layers(Setting(what, folder, HERE.device).model)
    for found, weights, held in kept.values():
        for k, (name, gradient) in enumerate(gradients.items()):
            if not clear(gradients)[k]:
                continue
            left, _, right = np.linalg.svd(gradient, full_matrices=False)
            tall = gradient.shape[0] >= gradient.shape[1]
            first, update = right[:4].T if tall else left[:, :4], weights[name] - start[name].weight.detach().numpy()
            inside = update @ first if tall else first.T @ update
            assert found["update"][k] == pytest.approx((inside**2).sum() / (update**2).sum(), abs=1e-3)
            cosines = np.sort(np.cos(subspace_angles(first, held[name])))[::-1]
            assert found["basis"][k] == pytest.approx(cosines[1], abs=1e-3)
    shares = [np.mean(found["update"]) for found, *_ in kept.values()]
    assert shares[0] > 0.99 > shares[1]


def test_galore_trains_the_layers_that_get_an_adapter_and_the_head(folder):
    what = meeting(folder, "galore", rank=4)
    model = adapted(Setting(what, folder, HERE.device).model, what, {}, None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.weight" for name in layers(model)} | {"classifier.weight", "classifier.bias"}
    made_of = optimizer(model, what)
    assert type(made_of) is GaLoreAdamW
    assert set(made_of.plans) == {layer.weight for layer in layers(model).values()}
    group = made_of.param_groups[0]
    expected = {"rank": 4, "scale": 1.0, "update_proj_gap": 50, "refresh": "exact", "moments": "keep", "lr": what.lr}
    assert {key: group[key] for key in (*expected, "stagger", "eps")} == {**expected, "stagger": False, "eps": 1e-6}


def test_watching_changes_nothing(folder, tmp_path):
    for method in ("compressed", "galore"):
        watched, not_watched = (
            run(meeting(folder, method, dropout=0.3, watch=flag), tmp_path / f"{method} {flag}", folder)
            for flag in (True, False)
        )
        assert watched["losses"] == not_watched["losses"]


def test_a_run_stopped_between_two_subspaces_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "GAP", 2)
    what = meeting(folder, "galore", dropout=0.3, accumulate=2)
    whole = run(what, tmp_path / "whole", folder)
    for at in (1, 2, 4):
        with pytest.raises(Stopped):
            run(what, tmp_path / str(at), folder, report=stopping(at))
        assert without_time(run(what, tmp_path / str(at), folder)) == without_time(whole)
        assert_equal(tmp_path / str(at), tmp_path / "whole")


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_named_runs_differ_in_method_and_seed_alone_and_drop_nothing(size):
    cells = EXPERIMENTS["meeting"].cells(size)
    assert {cell.method for cell in cells} == {"compressed", "galore", "lora"}
    for cell in cells:
        assert (cell.watch, cell.dropout) == (True, 0.0)
        fields = cell.described()
        assert {name for name in fields if fields[name] != cells[0].described()[name]} <= {"method", "seed"}
