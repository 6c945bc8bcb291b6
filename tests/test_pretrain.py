"""Pre-training: the loop is a plain one, resumable bit for bit; the arms are what they say; what is recorded."""

import json
import math
import subprocess
import types
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from lm_experiments import checkpoints, llama, records
from lm_experiments.__main__ import main
from lm_experiments.experiments import grid
from lm_experiments.factored import factored
from lm_experiments.loop import Diverged, Stopped
from lm_experiments.optimize import CLASSES, optimizer, state_bytes
from lm_experiments.optimizer_spec import DENSE, OPTIMIZERS
from lm_experiments.pretrain import Run, pretrain, started, thinned
from lm_experiments.processes import Processes
from lm_experiments.runs import Pretrain
from lm_experiments.summary import summary
from tests.test_distributed import ROOT, TORCHRUN, environment
from tests.test_finetune import assert_equal, stopping
from tests.tiny_models import made, without_time
from tests.tiny_texts import HERE, run, spec, written
from tests.two_pretrainings import RUNS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("texts"))


def of(name: str, **changes) -> Pretrain:
    """A run with this optimizer."""
    return spec(optimizer=name, **({"rank": 1, "scale": 128.0} if name == "apollo-mini" else {}), **changes)


# ---- the loop


@pytest.mark.parametrize("changes", [{}, {"clip": 0.5, "floor": 0.3, "weight_decay": 0.1}], ids=str)
def test_the_loop_is_a_plain_one(folder, tmp_path, changes):
    """Twenty lines of torch and transformers, which have their own loss, their own schedule and their own clipping."""
    what = spec(warmup=0.3, **changes)  # two steps of seven
    found = run(what, tmp_path, folder)
    model, text = started(what, folder)
    adam = torch.optim.AdamW(model.parameters(), lr=what.lr, weight_decay=what.weight_decay)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(adam, 2, 7, min_lr_rate=what.floor)
    rows = np.random.default_rng([0, 0]).permutation(len(text.train))
    losses = []
    for step in range(7):
        adam.param_groups[0]["lr"] = what.lr * schedule.lr_lambdas[0](step + 1)  # theirs has a step at rate 0 first
        tokens = torch.from_numpy(text.train.rows(rows[4 * step : 4 * step + 4]))
        loss = model(input_ids=tokens, labels=tokens).loss
        adam.zero_grad()
        loss.backward()
        if what.clip:
            nn.utils.clip_grad_norm_(model.parameters(), what.clip)
        adam.step()
        losses.append(loss.item())
    np.testing.assert_allclose([point["loss"] for point in found["curve"]], losses, rtol=2e-5)
    assert len(set(losses)) == 7
    chosen = np.unique(np.linspace(0, len(text.held_out) - 1, 12).astype(int))
    held_out = torch.from_numpy(text.held_out.rows(chosen))
    with torch.no_grad():
        last = model(input_ids=held_out, labels=held_out).loss.item()
    assert found["scores"][-1]["loss"] == pytest.approx(last, rel=1e-5)
    assert found["scores"][-1]["perplexity"] == pytest.approx(math.exp(last), rel=1e-4)
    assert [entry["step"] for entry in found["scores"]] == list(what.evaluations) == [0, 3, 6, 7]


def test_parts_of_a_batch_add_up(folder, tmp_path):
    what = spec(batch=5, clip=0.5)
    parted = [run(replace(what, accumulate=n), tmp_path / str(n), folder)["curve"] for n in (1, 2, 9)]
    for curve in parted[1:]:
        np.testing.assert_allclose([p["loss"] for p in curve], [p["loss"] for p in parted[0]], rtol=2e-5)


def test_a_small_model_learns_its_text(folder, tmp_path):
    """Ten words at random: far better than the 257 tokens of the start, and no better than the text allows."""
    found = run(spec(steps=150, batch=16, every=150), tmp_path, folder)
    first, last = (entry["perplexity"] for entry in found["scores"])
    assert first == pytest.approx(257, rel=0.1)
    words = 10 ** (1 / 6)  # ten words of about six letters, the spaces included
    assert words < last < 6


@given(steps=st.integers(1, 200), warmup=st.floats(0, 0.9), floor=st.floats(0, 1))
def test_the_rate_rises_to_one_then_falls_to_the_floor(steps, warmup, floor):
    plan = types.SimpleNamespace(spec=spec(steps=steps, warmup=warmup, floor=floor))
    rates = [Run.rate(plan, step) for step in range(1, steps + 1)]
    rising = round(warmup * steps)
    np.testing.assert_allclose(rates[:rising], np.arange(1, rising + 1) / max(rising, 1))
    falling = np.array([1.0, *rates[rising:]])
    assert (np.diff(falling) <= 1e-12).all()
    assert falling[-1] == pytest.approx(floor if steps > rising else 1)
    if len(falling) % 2 and len(falling) > 1:
        assert falling[len(falling) // 2] == pytest.approx((1 + floor) / 2)


# ---- resuming

CASES = [
    {"precision": "bf16", "accumulate": 2},
    {"precision": "mixed", "weight_decay": 0.1},
    {"optimizer": "lora", "scale": 32.0},
    {"optimizer": "low-rank"},
    {"optimizer": "galore", "layerwise": True},
    {"optimizer": "fira", "layerwise": True, "accumulate": 2},
    {"optimizer": "galore", "low_rank_backward": True, "accumulate": 2, "clip": 0.3},
    {"optimizer": "galore", "low_rank_backward": True, "layerwise": True, "accumulate": 2, "precision": "mixed"},
]


def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(folder, tmp_path):
    check_resuming(spec(clip=0.3), folder, tmp_path, range(1, 8))


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_every_kind_of_run_goes_on_bit_for_bit(folder, tmp_path, changes):
    check_resuming(spec(**changes), folder, tmp_path, (1, 4))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, changes) for name in CLASSES for changes in ({}, {"state": "8bit"})),
        *((name, {"refresh": "warm", "moments": "rotate"}) for name in CLASSES if "apollo" not in name),
        ("apollo", {"moments": "reset"}),
    ],
    ids=str,
)
def test_a_low_rank_run_stopped_before_after_and_at_a_refresh_goes_on_bit_for_bit(folder, tmp_path, name, changes):
    check_resuming(of(name, **changes), folder, tmp_path, (1, 3, 4))


def check_resuming(what, folder, place, stops):
    whole = run(what, place / "whole", folder, save_every=3)
    for at in stops:
        with pytest.raises(Stopped):
            run(what, place / str(at), folder, report=stopping(at), save_every=3)
        assert checkpoints.latest(place / str(at)).step == min(at + 1, 7)
        assert without_time(run(what, place / str(at), folder, save_every=3)) == without_time(whole)
        assert_equal(place / str(at), place / "whole")


def test_frozen_weights_are_kept_not_drawn_again(folder, tmp_path, monkeypatch):
    """Another version of torch may draw otherwise: here the second start is from another seed."""
    what = spec(optimizer="lora", scale=32.0)
    whole = run(what, tmp_path / "whole", folder)
    with pytest.raises(Stopped):
        run(what, tmp_path / "parts", folder, report=stopping(2))
    honest = llama.fresh
    monkeypatch.setattr(llama, "fresh", lambda configuration, seed: honest(configuration, seed + 7))
    assert without_time(run(what, tmp_path / "parts", folder)) == without_time(whole)


def test_another_text_in_the_same_folder_is_refused(folder, tmp_path):
    run(spec(steps=2), tmp_path / "run", folder)
    (tmp_path / "other.txt").write_text((folder / "words.txt").read_text().replace("red", "blue"))
    with pytest.raises(ValueError, match=r"begun with other examples \(train, held_out\): give the same data"):
        run(spec(steps=2), tmp_path / "run", tmp_path / "other.txt")


# ---- updates and cores in the backward pass

BACKWARD = {
    **{f"layerwise {name}": (name, {"layerwise": True}, {}) for name in CLASSES},
    "layerwise parts": ("fira", {"layerwise": True}, {"accumulate": 2}),
    "cores": ("galore", {"low_rank_backward": True}, {"accumulate": 2}),
    "cores, turned": ("galore", {"low_rank_backward": True}, {"refresh": "warm", "moments": "rotate", "state": "8bit"}),
    "cores, layerwise": ("galore", {"low_rank_backward": True, "layerwise": True}, {}),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_in_the_backward_pass_training_is_the_same(folder, tmp_path, case):
    name, options, shared = BACKWARD[case]
    plain, other = (of(name, **shared, **chosen) for chosen in ({}, options))
    found = [run(what, tmp_path / str(k), folder) for k, what in enumerate((plain, other))]
    losses = np.array([[point["loss"] for point in one["curve"]] for one in found])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
    kept = [checkpoints.latest(tmp_path / str(k)).tensors for k in (0, 1)]
    for key, weight in kept[0].items():
        if key.startswith("model/"):
            torch.testing.assert_close(kept[1][key], weight, rtol=0, atol=2e-4, msg=key)  # they move by 0.02
    assert found[0]["optimizer_bytes"] == found[1]["optimizer_bytes"]


def test_layerwise_updates_are_made_and_no_gradient_is_left(folder, tmp_path, monkeypatch):
    held, rates = [], []

    def seen(self, step):
        held.append([p.grad for p in self.body.parameters()])
        rates.append([float(s["step"]) for s in self.optimizer.state.values()])

    monkeypatch.setattr(Run, "seen", seen)
    run(of("galore", layerwise=True, accumulate=2), tmp_path, folder)
    assert [set(steps) for steps in rates] == [{float(step)} for step in range(1, 8)]  # one update, whatever the parts
    assert all(gradient is None for gradients in held for gradient in gradients)


def test_cores_are_there_in_place_of_gradients_and_the_common_norm_is_cut(folder, tmp_path, monkeypatch):
    norms, checked = [], []

    def seen(self, step):
        checked.append(self.to_check())
        norms.append(float(torch.nn.utils.get_total_norm(checked[-1].values())))

    monkeypatch.setattr(Run, "seen", seen)
    run(of("galore", low_rank_backward=True, clip=0.01), tmp_path, folder)
    np.testing.assert_allclose(norms, 0.01, rtol=1e-3)
    targets = llama.targets(started(spec(), folder)[0])
    assert {"the gradient of lm_head.weight", "the core of model.layers.0.mlp.up_proj.weight"} <= checked[3].keys()
    for step, there in enumerate(checked):  # the refresh of some falls on each step, as they are staggered
        formed = {name for name in targets if f"the gradient of {name}.weight" in there}
        assert formed | {name for name in targets if f"the core of {name}.weight" in there} == targets.keys()
        assert len(formed) == (len(targets) if step == 0 else pytest.approx(len(targets) / 3, abs=1))


@pytest.mark.parametrize("options", [{"layerwise": True}, {"low_rank_backward": True}], ids=str)
def test_a_run_that_diverges_in_the_backward_pass_says_so(folder, tmp_path, options):
    with pytest.raises(Diverged, match=r"step \d of tiny-files-galore-.* is not finite; take a smaller lr than 1e\+30"):
        run(of("galore", lr=1e30, warmup=0.0, **options), tmp_path, folder, save_every=1)
    saved = checkpoints.latest(tmp_path)  # none, if the norm of weights of 1e30 is no number already
    assert all(torch.isfinite(tensor).all() for tensor in (saved.tensors.values() if saved else ()))


@pytest.mark.parametrize(
    ("layer", "at", "message"),
    [
        (
            "model.layers.0.mlp.up_proj",
            1,
            r"step 1 of .*: the gradient of .*up_proj\.weight is not finite, and its sub",
        ),
        ("", 2, r"step 2 of .*: the loss is not finite; take a smaller lr than"),
        ("model.norm", 3, r"step 3 of .*: model\.norm\.weight after its update is not finite; take a smaller lr"),
    ],
)
def test_a_layerwise_step_that_is_no_number_spoils_no_checkpoint(folder, tmp_path, monkeypatch, layer, at, message):
    """A loss, or a gradient alone: the root of zero is finite, and its slope is not."""
    honest, calls = Run.loss, []

    def steep(self, indices):
        calls.append(None)
        loss = honest(self, indices)
        if len(calls) < at:
            return loss
        return loss + (self.body.get_submodule(layer).weight.sum() * 0).sqrt() if layer else loss * math.nan

    monkeypatch.setattr(Run, "loss", steep)
    with pytest.raises(Diverged, match=message):
        run(of("galore", layerwise=True), tmp_path, folder, save_every=1)
    found = checkpoints.latest(tmp_path)
    assert (found.step if found else 0) == at - 1


# ---- divergence


def test_a_run_that_diverges_stops_and_says_so(folder, tmp_path):
    """A real one: weights of 1e30 give logits that are no numbers."""
    with pytest.raises(Diverged, match=r"step \d of tiny-files-adamw-.* is not finite; take a smaller lr than 1e\+30"):
        run(spec(lr=1e30, warmup=0.0), tmp_path, folder, save_every=1)


def test_a_perplexity_that_is_no_number_stops_too(folder, tmp_path, monkeypatch):
    honest = Run._entropy

    def huge(self, *rows):
        return honest(self, *rows) * (1000 if not self.model.training else 1)

    monkeypatch.setattr(Run, "_entropy", huge)
    with pytest.raises(Diverged, match=r"step 0 .*: the held-out perplexity at loss .* is not finite"):
        run(spec(), tmp_path, folder)


# ---- the arms


def test_lora_starts_as_the_dense_model_and_moves_by_scaled_products(folder, tmp_path):
    what = spec(optimizer="lora", scale=32.0, precision="fp32")
    (dense, text), (body, _) = started(replace(what, optimizer="adamw"), folder), started(what, folder)
    tokens = torch.from_numpy(text.train.rows(np.arange(3)))
    torch.testing.assert_close(body(input_ids=tokens).logits, dense(input_ids=tokens).logits)
    layers = {name: layer for name, layer in body.named_modules() if hasattr(layer, "down")}
    assert set(layers) == set(llama.targets(dense))
    generator = torch.Generator().manual_seed(1)
    for name, layer in layers.items():
        layer.up.data.normal_(generator=generator)
        update = 32 / 4 * layer.up @ layer.down
        llama.targets(dense)[name].weight.data += update.detach()
    torch.testing.assert_close(body(input_ids=tokens).logits, dense(input_ids=tokens).logits, atol=1e-3, rtol=1e-3)
    trained = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if name.removesuffix(".weight") in layers]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= trained
    run(what, tmp_path, folder)
    kept = checkpoints.latest(tmp_path).tensors
    for name, layer in started(what, folder)[0].named_modules():
        if hasattr(layer, "down"):
            assert torch.equal(kept[f"frozen/{name}.weight"], layer.weight)
            assert not torch.equal(kept[f"model/{name}.up"], layer.up)


def test_low_rank_starts_as_the_best_balanced_product():
    what = spec(optimizer="low-rank", rank=5)
    dense = llama.fresh(llama.config("tiny"), 0)
    body = factored(llama.fresh(llama.config("tiny"), 0), what, 0)
    for name, layer in llama.targets(dense).items():
        product = body.get_submodule(name)
        left, values, right = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
        best = (left[:, :5] * values[:5]) @ right[:5]
        np.testing.assert_allclose((product.up @ product.down).detach(), best, atol=2e-5)
        balance = product.up.mT @ product.up - product.down @ product.down.mT
        np.testing.assert_allclose(balance.detach(), 0, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "low-rank"])
def test_a_rank_above_a_layers_and_a_bias_are_refused(name):
    model = llama.fresh(llama.config("tiny"), 0)
    with pytest.raises(ValueError, match=r"rank = 33 of model\.layers\.0\.self_attn\.q_proj, \(32, 32\)"):
        factored(model, spec(optimizer=name, rank=33), 0)
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 88)
    with pytest.raises(ValueError, match=f"up_proj has a bias, which {name} has no place for"):
        factored(model, spec(optimizer=name, rank=4), 0)


def test_in_bf16_all_is_but_the_frequencies_of_positions(folder, tmp_path):
    body, _ = started(spec(precision="bf16"), folder)
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}
    assert body.model.rotary_emb.inv_freq.dtype == torch.float32
    curves = [run(spec(precision=p), tmp_path / p, folder)["curve"] for p in ("fp32", "mixed", "bf16")]
    losses = np.array([[point["loss"] for point in curve] for curve in curves])
    assert len(np.unique(losses[:, 0])) == 3
    np.testing.assert_allclose(losses[1:], losses[[0, 0]], rtol=0.03)


def test_a_spec_makes_the_optimizer_that_it_says(folder):
    body, _ = started(spec(), folder)
    for name, kind in CLASSES.items():
        apollo = name.startswith("apollo")  # whose bases are random
        how = {"moments": "reset", "state": "8bit", "lr": 0.3} | ({} if apollo else {"refresh": "randomized"})
        made_of = optimizer(body, of(name, **how))
        assert type(made_of) is kind
        group, expected = made_of.param_groups[0], {"rank": 4, "scale": 0.25} | how
        if apollo:
            expected["refresh"] = "random"
        if name == "apollo-mini":
            expected |= {"rank": 1, "scale": 128.0}
        expected |= {"update_proj_gap": 3, "weight_decay": 0.0}
        assert {key: group[key] for key in expected} == expected
        projected = {name for name, p in body.named_parameters() if p in made_of.plans}
        assert projected == {n for n, _ in body.named_parameters() if "attn" in n or "mlp" in n}
    assert set(CLASSES) | set(DENSE) == set(OPTIMIZERS)


@pytest.mark.parametrize("share", [1.0, 0.125])
def test_adamw_moves_targets_by_their_share(folder, share):
    """Its first step is the rate in every entry."""
    body, text = started(spec(), folder)
    start = {key: value.clone() for key, value in body.state_dict().items()}
    made_of = optimizer(body, spec(share=share))
    tokens = torch.from_numpy(text.train.rows(np.arange(3)))
    (1e3 * body(input_ids=tokens, labels=tokens).loss).backward()
    made_of.step()
    furthest = {key: float((value - start[key]).abs().max()) for key, value in body.state_dict().items()}
    rates = {key: spec().lr * (share if "proj" in key else 1) for key in furthest}
    assert furthest == pytest.approx(rates, rel=1e-3)


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_target_moves_as_in_adamw_however_small_its_gradient(folder, name):
    """Gradients of 1e-8 and less, beside which Adam's epsilon is not small."""
    moved = []
    for what in (spec(), of(name)):
        body, text = started(what, folder)
        start = {key: value.clone() for key, value in body.state_dict().items()}
        made_of = optimizer(body, what)
        tokens = torch.from_numpy(text.train.rows(np.arange(3)))
        (1e-6 * body(input_ids=tokens, labels=tokens).loss).backward()
        made_of.step()
        others = {key: value - start[key] for key, value in body.state_dict().items() if "proj" not in key}
        assert len(others) == 7  # two embeddings, five norms
        moved.append(torch.cat([value.flatten() for value in others.values()]))
    assert 0.02 < moved[0].abs().mean() / spec().lr < 0.9
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-2, atol=1e-2 * spec().lr)


# ---- what is recorded


def test_state_is_counted_by_the_memory_that_it_keeps_alive():
    model = nn.Linear(8, 4, bias=False)
    found = optimizer(model, spec())
    assert state_bytes(found) == 0
    model(torch.ones(1, 8)).sum().backward()
    found.step()
    assert state_bytes(found) == 2 * 4 * 32 + 4
    state = found.state[model.weight]
    state["view"] = torch.zeros(1000, dtype=torch.float64)[:2]
    state["again"] = state["exp_avg"][0]
    state["object"] = types.SimpleNamespace(inner=[torch.zeros(3)])
    assert state_bytes(found) == 2 * 4 * 32 + 4 + 8000 + 12


@given(losses=st.lists(st.floats(0, 10), min_size=1, max_size=300), points=st.integers(1, 40))
def test_a_thinned_curve_has_few_points_and_the_same_mean(losses, points):
    found = thinned(losses, points)
    steps = [point["step"] for point in found]
    assert len(found) <= points
    assert steps[-1] == len(losses)
    means = np.average([point["loss"] for point in found], weights=np.diff([0, *steps]))
    assert means == pytest.approx(np.mean(losses), abs=1e-9)


def test_the_command_runs_records_and_does_not_run_again(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    places = {"data": folder, "runs": tmp_path / "runs", "results": tmp_path / "records"}
    line = ["pretrain", *(str(part) for name, value in places.items() for part in (f"--{name}", value))]
    line += ["--model", "tiny", "--text", "files", "--steps", "3", "--length", "24", "--batch", "4", "--every", "3"]
    assert main(line) == 0
    shown = capsys.readouterr()
    assert "✓ 1 of 1: tiny-files-adamw-r64-s0, perplexity " in shown.err
    assert "tiny-files-adamw-r64: lr 0.01" in shown.out
    what = Pretrain(model="tiny", text="files", steps=3, length=24, batch=4, every=3)
    record = records.read(what, places["results"])
    assert record.found["tokens"] == 3 * 4 * 24
    assert record.found["optimizer_bytes"] == 2 * 4 * 41_696 + 4 * 21
    assert record.found["parameters"] == {"all": 41_696, "trained": 41_696}
    assert set(record.found["data"]) == {"train", "held_out"}
    assert record.score("perplexity") == record.found["scores"][-1]["perplexity"]
    assert record.where["processes"] == 1
    assert main(line) == 0
    again = capsys.readouterr()
    assert "✓" not in again.err
    assert again.out == shown.out


def test_a_diverged_run_is_recorded_as_the_worst(folder, tmp_path, capsys):
    places = ["--data", str(folder), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "records")]
    small = ["--model", "tiny", "--text", "files", "--steps", "9", "--length", "24", "--batch", "4"]
    assert main(["pretrain", *places, *small, "--lr", "1e30"]) == 1
    record = records.read(
        Pretrain(model="tiny", text="files", steps=9, length=24, batch=4, lr=1e30), tmp_path / "records"
    )
    assert record.score("perplexity") == math.inf
    assert "diverged" in capsys.readouterr().out


def test_runs_of_pretraining_make_a_table(capsys):
    cells = grid(spec(), 2, optimizer=("adamw", "lora"), lr=(0.01, 0.02))
    found = [records.Record(cell, {"scores": [{"step": 7, "perplexity": 3.25}]}, {}) for cell in cells]
    Console(width=80).print(summary(found))
    shown = capsys.readouterr().out
    assert shown.count("3.2500") == 4
    assert "tiny, files, rank 4" in shown


def test_a_pretrained_model_goes_on_with_its_own_tokenizer(folder, tmp_path):
    place = made(tmp_path) / "llama"
    what = spec(model=str(place), lr=1e-3)
    body, text = started(what, folder)
    assert text.vocabulary == body.config.vocab_size
    found = run(what, tmp_path / "run", folder)
    assert found["scores"][-1]["loss"] < found["scores"][0]["loss"]
    with pytest.raises(ValueError, match=r"tokenizer = 'x' of .*llama, which has its own: leave it out"):
        started(replace(what, tokenizer="x"), folder)
    words, _ = started(spec(tokenizer=str(place)), folder)  # another model with that tokenizer
    assert words.config.vocab_size == text.vocabulary
    assert words.model.embed_tokens.weight.shape == (text.vocabulary, 32)


# ---- two processes


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory) -> tuple[Path, list[dict]]:
    """What two processes under torchrun have left, and what each of them found."""
    work = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, ROOT / "tests" / "two_pretrainings.py", folder, work]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return work, [json.loads((work / f"found.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_does(folder, tmp_path, two, name):
    changes, _ = RUNS[name]
    alone, together = run(spec(**changes), tmp_path, folder), two[1][0][name]
    tolerance = 2e-2 if changes.get("precision") == "bf16" else 5e-5
    for key in ("curve", "scores"):
        one, other = ([entry["loss"] for entry in found[key]] for found in (alone, together))
        np.testing.assert_allclose(other, one, rtol=tolerance)
    same = ("tokens", "parameters", "data", "optimizer_bytes")
    assert [together[key] for key in same] == [alone[key] for key in same]
    kept, expected = checkpoints.latest(two[0] / name), checkpoints.latest(tmp_path)
    assert {key: t.shape for key, t in kept.tensors.items()} == {key: t.shape for key, t in expected.tensors.items()}


@pytest.mark.parametrize("name", ["ddp watch", "fsdp watch"])
def test_two_processes_watch_the_gradients_of_the_whole_batch(folder, tmp_path, two, name):
    changes, _ = RUNS[name]
    alone, together = run(spec(**changes), tmp_path, folder)["gradients"], two[1][0][name]["gradients"]
    assert together["layers"] == alone["layers"]
    for one, other in zip(alone["at"], together["at"], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=0.02, atol=0.01)


def test_both_processes_find_the_same(two):
    assert two[1][0] == two[1][1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_stopped_and_resumed_two_processes_are_equal_bit_for_bit(two, parallel):
    work, (found, _) = two
    assert found[f"resumed {parallel}"] == {"stopped": 3, **found[parallel]}
    assert_equal(work / f"resumed {parallel}", work / parallel)


def test_two_processes_diverge_together(two):
    assert "is not finite; take a smaller lr" in two[1][0]["diverged"]


def test_there_must_be_a_held_out_row_for_each_process(folder, tmp_path):
    body, text = started(spec(held_out=1), folder)
    with pytest.raises(ValueError, match="1 held-out rows for 2 processes: take as many"):
        Run(spec(held_out=1), text, body, body, optimizer(body, spec()), tmp_path, Processes(0, 2, torch.device("cpu")))


# ---- what is refused

OTHER = {"model": "9m", "text": "files", "tokenizer": "a", "optimizer": "lora", "refresh": "warm", "moments": "reset"}
OTHER |= {"precision": "bf16", "weight_decay": 0.1, "clip": 1.0, "state": "8bit"}
OTHER |= dict.fromkeys(("layerwise", "low_rank_backward", "watch"), True)
NEEDS_GALORE = ("state", "layerwise", "low_rank_backward")


@pytest.mark.parametrize("name", [field.name for field in fields(Pretrain)])
def test_every_field_makes_another_run_with_another_record(tmp_path, name):
    start = Pretrain(optimizer="galore") if name in NEEDS_GALORE else Pretrain()
    value = getattr(start, name)
    other = replace(start, **{name: OTHER[name] if name in OTHER else value + 2 if type(value) is int else value / 2})
    assert other.key != start.key
    records.write(other, {"scores": []}, {}, tmp_path)
    assert records.read(start, tmp_path) is None
    assert records.read(other, tmp_path).spec == other
    assert json.loads(records.path(other, tmp_path).read_text())["spec"] == other.described()


def test_keys_are_what_they_were_before_there_were_more_fields():
    keys = {
        Pretrain().key: "3m-python-adamw-r64-s0-44136fa355",
        spec(optimizer="galore", gap=5).key: "tiny-files-galore-r4-s0-a921564cf8",
    }
    assert all(key == before for key, before in keys.items())


@pytest.mark.parametrize("change", [lambda there: there.pop("layerwise"), lambda there: there.update(layerwise=True)])
def test_a_record_of_other_fields_is_refused(tmp_path, change):
    what = spec(optimizer="galore")
    place = records.write(what, {"scores": []}, {}, tmp_path)
    assert records.read(what, tmp_path).spec == what
    content = json.loads(place.read_text())
    change(content["spec"])
    place.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is the record of another run, differing in layerwise: were defaults changed"):
        records.read(what, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "optimizer = 'adam': take one of adamw, lora"),
        ({"rank": 0}, "rank = 0: take 1 or more"),
        ({"share": 0.0}, "share = 0.0 with optimizer = 'adamw': take a finite number > 0"),
        ({"optimizer": "fira", "share": 0.5}, "share = 0.5 with optimizer = 'fira': take .* 1 unless it is adamw"),
        ({"optimizer": "apollo-mini"}, "rank = 4: apollo-mini has rank 1, and scale 128"),
        ({"optimizer": "apollo", "refresh": "warm"}, "bases are random and not orthonormal, so leave refresh"),
        ({"optimizer": "apollo", "moments": "rotate"}, "so leave refresh, and take keep or reset"),
        ({"state": "8bit"}, "state = '8bit' with optimizer = 'adamw': take fp32, or a low-rank optimizer"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"scale": 0.0}, "scale = 0.0"),
        ({"weight_decay": 1.0}, "weight_decay = 1.0"),
        ({"steps": 0}, "steps = 0: take 1 or more"),
        ({"length": 0}, "length = 0: take 1 or more"),
        ({"held_out": -1}, "held_out = -1: take 0 or more"),
        ({"warmup": 1.0}, "warmup = 1.0"),
        ({"floor": 1.5}, "floor = 1.5"),
        ({"clip": float("inf")}, "clip = inf"),
        ({"layerwise": True}, "layerwise = True with optimizer = 'adamw', clip = 0.0: take a low-rank optimizer"),
        ({"optimizer": "fira", "layerwise": True, "clip": 1.0}, "layerwise = True .* clip = 1.0: .* and clip = 0"),
        ({"optimizer": "fira", "low_rank_backward": True}, "low_rank_backward = True with optimizer = 'fira', which"),
        ({"low_rank_backward": True}, "low_rank_backward = True with optimizer = 'adamw', .*: take galore"),
        ({"optimizer": "lora", "watch": True}, "watch = True needs the whole gradients .* in place of lora"),
        ({"optimizer": "galore", "layerwise": True, "watch": True}, "watch = True needs .* take layerwise = False"),
        ({"optimizer": "galore", "low_rank_backward": True, "watch": True}, "watch = True needs the whole gradients"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"save_every": 0}, "save_every = 0: take 1 or more"),
        ({}, {"here": Processes(0, 8, torch.device("cpu"))}, "batch = 4 for 8 processes: take 8 or more"),
        ({}, {"parallel": "fsdp"}, "start them with torchrun"),
        (
            {"optimizer": "galore", "layerwise": True},
            {"parallel": "fsdp"},
            "layerwise and low_rank_backward need 'ddp'",
        ),
        ({"optimizer": "galore", "low_rank_backward": True}, {"parallel": "fsdp"}, "'fsdp' reduces whole gradients"),
        ({"text": "python"}, {}, "'files' needs one, and it alone"),
        ({"model": "nothing"}, {}, "no model 'nothing'"),
    ],
)
def test_what_cannot_run_is_refused(folder, tmp_path, changes, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(spec(**changes), tmp_path, folder, **{"here": HERE, **options})
