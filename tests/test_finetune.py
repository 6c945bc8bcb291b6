"""The fine-tuning loop: equal to a plain one, resumable bit for bit after any step and any kill; what it refuses."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from torch.nn.functional import cross_entropy, mse_loss
from transformers import T5Config, T5ForConditionalGeneration

from lm_experiments import checkpoints
from lm_experiments import finetune as loop
from lm_experiments.adapt import adapted, optimizer, parameter_groups, trainable
from lm_experiments.batches import by_length, encode, held_out, order
from lm_experiments.finetune import Diverged, Run, Stopped
from lm_experiments.processes import Processes
from lm_experiments.runs import METHODS
from lm_experiments.setting import Setting
from lm_experiments.tasks import text
from lm_experiments.tasks.text import TASKS, Examples
from lm_experiments.watch import Watch, updates
from tests.tiny_models import HERE, WORDS, bert, llama_spec, made, run, spec, without_time

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"))


def started(what, folder):
    """The setting, and the model as the loop starts it."""
    setting = Setting(what, folder, HERE.device)
    torch.manual_seed(what.seed)
    count = len(setting.train)
    first = setting.train.batch(np.random.default_rng([what.seed, 0]).permutation(count)[: what.batch])
    return setting, adapted(setting.model, what, first, setting.loss)


@pytest.fixture(scope="module")
def t5(folder) -> Path:
    """With BERT's words, whose texts end in [SEP]."""
    tokenizer, _ = bert([" ".join(WORDS)])
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.eos_token = tokenizer.sep_token
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2, "decoder_start_token_id": 0}
    config = T5Config(**sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    return folder / "t5"


@pytest.mark.parametrize("method", ["compressed", "lora"])
@pytest.mark.parametrize("task", ["stsb", "sst2"])
def test_an_encoder_with_a_decoder_learns_as_an_encoder_does(folder, tmp_path, t5, task, method):
    what = spec(folder, model=str(t5), task=task, method=method, steps=60, every=60, dropout=0.0)
    found = run(what, tmp_path / "run", folder)
    epoch = 12 // 4  # a batch alone is noise
    assert np.mean(found["losses"][-4 * epoch :]) < 0.5 * np.mean(found["losses"][:epoch])
    names = started(spec(folder, model=str(t5), task=task, method=method), folder)[1].state_dict()
    for part in ("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.v", "wo"):
        assert any(part in name and ("deep_lora" in name or "lora_A" in name) for name in names), part


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_is_that_of_the_spec(folder, method):
    what = spec(folder, method=method, eps=0.123)
    groups = optimizer(started(what, folder)[1], what).param_groups
    assert {group["eps"] for group in groups} == {0.123}


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


# ---- the loop


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_is_a_plain_one(folder, tmp_path, method):
    """Ten lines of torch, from the same start and on the same examples, without dropout."""
    what = spec(folder, method=method, dropout=0.0, decay=0.5)
    found = run(what, tmp_path / "run", folder)
    setting, model = started(what, folder)
    epochs = np.concatenate([np.random.default_rng([0, epoch]).permutation(12) for epoch in range(3)])
    plain = torch.optim.AdamW(parameter_groups(model, what), eps=1e-6, weight_decay=0.0)
    plain = optimizer(model, what) if method == "galore" else plain
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 1 - 0.5 * step / 6)
    losses = []
    for step in range(7):
        batch = setting.train.batch(epochs[4 * step : 4 * step + 4])
        loss = mse_loss(model(**without_labels(batch)).logits[:, 0], batch["labels"])
        plain.zero_grad()
        loss.backward()
        plain.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    assert len(set(losses)) == 7
    final = setting.answers(model, HERE.device)
    assert found["scores"][-1]["pearson"] == pytest.approx(np.corrcoef(final, setting.test.labels)[0, 1], rel=1e-4)


def test_parts_of_a_batch_add_up(folder, tmp_path):
    """Five parts of a batch of four are four; the loss is the mean over the batch, not of means over parts."""
    what = spec(folder, dropout=0.0, batch=5)
    parted = [run(replace(what, accumulate=n), tmp_path / str(n), folder)["losses"] for n in (1, 2, 5, 9)]
    for losses in parted[1:]:
        np.testing.assert_allclose(losses, parted[0], rtol=2e-5)


def test_a_batch_may_be_larger_than_the_examples(folder, tmp_path):
    """Eight of four: each example twice, so the same loss and the same steps as each once."""
    what = spec(folder, dropout=0.0, examples=4, method="lora")
    once, twice = (run(replace(what, batch=n), tmp_path / str(n), folder)["losses"] for n in (4, 8))
    np.testing.assert_allclose(twice, once, rtol=2e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"method": "lora"}, {"method": "galore"}, {"method": "full"}, {"gamma": 0.0}], ids=str
)
def test_head_and_outer_factors_learn_at_their_own_rates(folder, changes):
    what = spec(folder, **{"gamma": 0.05, "head_lr": 0.5, **changes})
    _, model = started(what, folder)
    groups = [(id(p), group["lr"]) for group in parameter_groups(model, what) for p in group["params"]]
    rates = dict(groups)
    assert len(rates) == len(groups)
    for name, parameter in model.named_parameters():
        outer = "deep_lora_left" in name or "deep_lora_right" in name
        expected = 0.5 if "classifier" in name else 0.01 * what.gamma if outer else 0.01
        assert rates.get(id(parameter)) == (pytest.approx(expected) if parameter.requires_grad else None), name
        if outer:
            assert parameter.requires_grad == bool(what.gamma)
    assert trainable(model)["head"] == 17  # 16 weights and a bias
    assert sum(trainable(model).values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_scores_start_at_their_mean_and_only_if_asked(folder):
    for centre in (True, False):
        setting = Setting(spec(folder, centre=centre), folder, HERE.device)
        expected = setting.train.labels.mean() if centre else 0.0
        assert setting.model.classifier.bias.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
def test_in_bf16_what_trains_stays_in_float32(folder, tmp_path, name, method):
    """The head, too, and the gradient that the compressed form starts from."""
    exact, rounded = (spec(folder, model=str(folder / name), method=method, precision=p) for p in ("fp32", "bf16"))
    _, model = started(rounded, folder)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == (set() if method == "full" else {torch.bfloat16})
    losses = [run(replace(what, steps=2), tmp_path / what.precision, folder)["losses"] for what in (exact, rounded)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.1)


def test_in_bf16_gradients_of_the_cores_are_those_of_single_precision(folder, tmp_path):
    """Products of small factors are taken in single precision, forward and backward, whatever autocast does else."""
    what = spec(folder, precision="bf16", dropout=0.0)
    setting, model = started(what, folder)
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    folded, seen = layer.folded, []

    def watched(name):
        right, top = folded(name)
        top.retain_grad()
        seen.append(top)
        return right, top

    layer.folded = watched
    Run(setting, model, model, tmp_path, HERE, Watch(what))._gradients(1)
    left, (first, second, third) = layer.outer("default")[1], layer.cores("default")
    by_hand = ((left.double() @ third.double() @ second.double()).mT @ seen[0].grad.double()).detach()
    np.testing.assert_allclose(first.grad, by_hand, rtol=1e-5, atol=1e-6 * float(by_hand.abs().max()))


# ---- words


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_causal_model_answers_by_words_at_its_last_token(folder, side):
    """One text after the other, without padding: so it cannot matter on which side the tokenizer pads."""
    setting = Setting(llama_spec(folder), folder, HERE.device)
    assert setting.asks
    tokenizer, texts = setting.train.tokenizer, ("red", "man plays off plane guitar", "cooks slowly")
    tokenizer.padding_side = side
    batch = encode(tokenizer, TASKS["sst2"], Examples(texts, None, np.array([0, 1, 1])), 64, asks=True).batch(
        np.arange(3)
    )
    assert (batch["attention_mask"] == 0).any()
    words = [tokenizer(word)["input_ids"][0] for word in (" negative", " positive")]
    single = []
    for one, label in zip(texts, (0, 1, 1), strict=True):
        ids = torch.tensor([tokenizer(f"Review: {one}\nSentiment:")["input_ids"]])
        single.append(cross_entropy(setting.model(input_ids=ids).logits[:, -1, words], torch.tensor([label])).item())
    assert setting.loss(setting.model, batch).item() == pytest.approx(np.mean(single), rel=1e-5)
    assert np.ptp(single) > 1e-3


def test_words_that_begin_alike_are_refused(folder, monkeypatch):
    monkeypatch.setitem(TASKS, "sst2", replace(TASKS["sst2"], words=(" negative", " negative indeed")))
    with pytest.raises(ValueError, match=r"begin with the same token: give a model that tells them apart"):
        Setting(llama_spec(folder), folder, HERE.device)


# ---- resuming


def stopping(at):
    """A report that sends SIGTERM after a step; the loop notices it after the next one."""

    def report(step, loss):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def assert_equal(one: Path, other: Path) -> None:
    """All that trains, the optimizer's state and the metrics, bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    first, second = checkpoints.latest(one), checkpoints.latest(other)
    assert first.step == second.step
    assert set(first.tensors) == set(second.tensors)
    for name, tensor in first.tensors.items():
        bits = [t.reshape(-1).view(torch.uint8) for t in (tensor, second.tensors[name])]  # NumPy has no bfloat16
        assert torch.equal(*bits), name


CASES = [
    (spec, {"method": "compressed"}),
    (spec, {"method": "compressed", "gamma": 0.0, "watch": True}),
    (spec, {"method": "compressed", "precision": "bf16"}),
    (spec, {"method": "lora", "accumulate": 2, "watch": True}),
    (spec, {"method": "random", "gamma": 0.0, "precision": "bf16"}),
    (spec, {"method": "narrow", "decay": 0.3}),
    (spec, {"method": "wide"}),
    (spec, {"method": "full", "decay": 0.1, "lr": 1e-3}),
    (spec, {"method": "galore", "watch": True}),
    (llama_spec, {"method": "lora", "precision": "bf16", "watch": True}),
    (llama_spec, {"method": "full", "precision": "bf16"}),
]


@pytest.mark.parametrize(("make", "changes"), CASES, ids=lambda c: getattr(c, "__name__", str(c)))
def test_a_run_stopped_twice_goes_on_bit_for_bit(folder, tmp_path, make, changes):
    what = make(folder, **changes)
    if make is spec:  # Llama has no dropout
        what = replace(what, dropout=0.3)
    whole = run(what, tmp_path / "whole", folder)
    for at in (1, 3):
        with pytest.raises(Stopped) as stopped:
            run(what, tmp_path / "parts", folder, report=stopping(at))
        assert stopped.value.code == 143
        assert checkpoints.latest(tmp_path / "parts").step == at + 1
    parts = run(what, tmp_path / "parts", folder)
    assert without_time(parts) == without_time(whole)
    assert_equal(tmp_path / "parts", tmp_path / "whole")


def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(folder, tmp_path):
    what = spec(folder, dropout=0.3, method="lora")
    whole = run(what, tmp_path / "whole", folder, save_every=3)
    for at in range(1, 8):
        with pytest.raises(Stopped):  # also after the last step: more may wait behind this run
            run(what, tmp_path / str(at), folder, report=stopping(at), save_every=3)
        assert checkpoints.latest(tmp_path / str(at)).step == min(at + 1, 7)
        assert without_time(run(what, tmp_path / str(at), folder, save_every=3)) == without_time(whole)
        assert_equal(tmp_path / str(at), tmp_path / "whole")


@pytest.mark.parametrize("method", ["compressed", "random"])
def test_frozen_outer_factors_are_kept_not_found_again(folder, tmp_path, monkeypatch, method):
    """Another machine may round the first gradient differently, and turn its singular vectors: the cores would be lost.

    Here the second start is from another seed, which is as different as can be."""
    what = spec(folder, gamma=0.0, method=method, dropout=0.3)
    whole = run(what, tmp_path / "whole", folder)
    with pytest.raises(Stopped):
        run(what, tmp_path / "parts", folder, report=stopping(2))
    honest = loop.adapted

    def elsewhere(model, what, batch, loss):
        return honest(model, replace(what, seed=7), batch, loss)

    monkeypatch.setattr(loop, "adapted", elsewhere)
    assert without_time(run(what, tmp_path / "parts", folder)) == without_time(whole)


def test_dropout_depends_on_seed_and_step(folder, tmp_path, monkeypatch):
    """torch's CPU generator takes 32 bits of a seed: what differs above them drops the same units."""
    seeds, honest = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (seeds.append(seed % 2**32), honest(seed)))
    for seed in (0, 1):
        run(spec(folder, method="lora", seed=seed), tmp_path / str(seed), folder)
    assert len(set(seeds)) == len(seeds) == 2 * (1 + 7)  # the adapter's start, and each step


def test_another_spec_or_other_examples_in_the_same_folder_are_refused(folder, tmp_path, monkeypatch):
    what = spec(folder, steps=2)
    run(what, tmp_path, folder)
    with pytest.raises(ValueError, match=r"lr: 0\.01 there, 0\.02 here"):
        run(replace(what, lr=0.02), tmp_path, folder)
    honest = text.load

    def changed(task, split, source):
        examples = honest(task, split, source)
        return replace(examples, labels=examples.labels + (split == "validation"))

    monkeypatch.setattr(text, "load", changed)
    with pytest.raises(ValueError, match=r"begun with other examples \(held_out\): give the same data"):
        run(what, tmp_path, folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_every": 0}, "save_every = 0: take 1 or more"),
        ({"here": Processes(0, 8, torch.device("cpu"))}, "batch = 4 for 8 processes: take 8 or more"),
        ({"parallel": "fsdp"}, "start them with torchrun"),
    ],
)
def test_what_cannot_run_is_refused(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        loop.finetune(spec(folder), tmp_path, folder, **{"here": HERE, **options})


def test_a_run_with_more_examples_than_there_are_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"count = 41: there are 40 examples"):
        run(spec(folder, examples=41), tmp_path, folder)


# ---- divergence


def assert_whole(place: Path, step: int, like: Path) -> None:
    """The checkpoint before is there, and is what it is in a run without the accident."""
    found, expected = checkpoints.latest(place), checkpoints.latest(like)
    assert found.step == expected.step == step
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in found.tensors.items())
    assert len((place / "metrics.jsonl").read_text().splitlines()) == step + 1


def test_a_loss_that_is_not_finite_stops_before_anything_is_spoilt(folder, tmp_path, monkeypatch):
    what, honest, calls = spec(folder, steps=6), Setting.loss, []
    with pytest.raises(Stopped):
        run(what, tmp_path / "until", folder, save_every=1, report=stopping(2))

    def poisoned(self, model, batch):
        calls.append(1)
        return honest(self, model, batch) * (float("nan") if len(calls) == 5 else 1)  # the first is calibration

    monkeypatch.setattr(Setting, "loss", poisoned)
    with pytest.raises(Diverged, match=r"step 4 of bert-.*: the loss is not finite; take a smaller lr than 0\.01"):
        run(what, tmp_path / "run", folder, save_every=1)
    assert_whole(tmp_path / "run", 3, tmp_path / "until")


def test_a_loss_that_is_not_finite_is_enough(folder, tmp_path, monkeypatch):
    """Its gradient may well be: what is too large for a number can have a slope."""
    honest = Run._gradients
    monkeypatch.setattr(Run, "_gradients", lambda self, step: honest(self, step) + (float("inf") if step == 2 else 0))
    with pytest.raises(Diverged, match=r"step 2 of .*: the loss is not finite"):
        run(spec(folder, method="lora"), tmp_path, folder, save_every=1)
    assert checkpoints.latest(tmp_path).step == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_named(folder, tmp_path, monkeypatch, value):
    """The loss is finite: only what flows back is broken, in one tensor."""
    what, honest = spec(folder, steps=6, method="lora"), Run._check
    name = "base_model.model.bert.encoder.layer.1.output.dense.lora_A.default.weight"
    with pytest.raises(Stopped):
        run(what, tmp_path / "until", folder, save_every=1, report=stopping(2))

    def poisoned(self, step, loss):
        if step == 4:
            self.body.get_parameter(name).grad[1, 2] = value
        honest(self, step, loss)

    monkeypatch.setattr(Run, "_check", poisoned)
    with pytest.raises(Diverged, match=rf"step 4 of .*: the gradient of {name} is not finite"):
        run(what, tmp_path / "run", folder, save_every=1)
    assert_whole(tmp_path / "run", 3, tmp_path / "until")


@pytest.mark.parametrize("task", ["stsb", "sst2"])
def test_answers_that_are_not_finite_are_never_scored(folder, tmp_path, monkeypatch, task):
    """An argmax of NaNs is a class: a run whose last step broke the weights would be recorded like any other."""
    honest = torch.optim.AdamW.step

    def last(self):
        honest(self)
        if all(state["step"] == 7 for state in self.state.values()):
            self.param_groups[-1]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", last)
    with pytest.raises(Diverged, match=r"step 7 of .*: the answer to held-out example 0 is not finite"):
        run(spec(folder, task=task, method="lora"), tmp_path, folder, save_every=5)
    assert checkpoints.latest(tmp_path).step == 5


# ---- what is watched


@pytest.mark.parametrize("method", ["lora", "compressed", "wide", "galore"])
def test_watched_spectra_and_angles_are_those_of_the_weights(folder, tmp_path, monkeypatch, method):
    """The updates are differences of merged weights; angles come from SciPy, on their exact singular vectors.

    Where the next singular value is all but as large, which directions lead is rounding, and the smallest cosine, too.
    """
    what, kept, honest = spec(folder, method=method, watch=True, every=4, rank=2), {}, Watch.__call__

    def watching(self, step, model):
        kept[step] = updates(model, self.start)
        kept["model"] = model
        honest(self, step, model)

    monkeypatch.setattr(Watch, "__call__", watching)
    found = run(what, tmp_path, folder)
    merged = kept["model"] if method == "galore" else kept["model"].merge_and_unload()
    start = Setting(what, folder, HERE.device).model
    directions = 8 if method == "wide" else 2
    for name, update in kept[7].items():
        exact = merged.get_submodule(name).weight - start.get_submodule(name).weight
        torch.testing.assert_close(update, exact.detach(), atol=1e-5, rtol=1e-3)
        exact_values = torch.linalg.svdvals(update).tolist()
        np.testing.assert_allclose(found["spectra"][name], exact_values, atol=1e-5)
        assert (np.array(exact_values[directions:]) < 1e-4).all() or method == "wide"
    assert list(found["cosines"]) == ["4", "7"]
    early, last = (
        [torch.linalg.svd(update).U[:, :directions].numpy() for update in kept[step].values()] for step in (4, 7)
    )
    angles = np.cos([subspace_angles(one, other) for one, other in zip(early, last, strict=True)])
    values = torch.stack([torch.stack([torch.linalg.svdvals(u)[:9] for u in kept[k].values()]) for k in (4, 7)])
    determined = (values[..., directions] < (1 - 1e-3) * values[..., directions - 1]).all(0).numpy()
    assert determined.sum() >= (6 if method == "wide" else len(determined))
    smallest = np.array(found["cosines"]["4"]["smallest"])
    np.testing.assert_allclose(smallest[determined], angles.min(1)[determined], atol=0.01)
    np.testing.assert_allclose(found["cosines"]["4"]["largest"], angles.max(1), atol=1e-3)
    np.testing.assert_allclose(found["cosines"]["7"]["smallest"], 1, atol=1e-5)


# ---- batches


@given(count=st.integers(1, 30), batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation_drawn_from_the_seed(count, batch, seed):
    steps = -(-3 * count // batch)
    seen = np.concatenate([order(count, batch, seed, step) for step in range(1, steps + 1)])[: 3 * count]
    epochs = seen.reshape(3, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    np.random.seed(steps)  # noqa: NPY002 - and nothing else is drawn from
    assert (order(count, batch, seed, steps) == order(count, batch, seed, steps)).all()
    if count > 8:
        assert (epochs[0] != epochs[1]).any()
        assert (order(count, count, seed, 1) != order(count, count, seed + 1, 1)).any()


@given(count=st.integers(2, 50), most=st.integers(0, 30))
def test_halves_of_the_validation_examples_share_none_and_cover_all(count, most):
    examples = Examples(tuple(map(str, range(count))), None, np.zeros(count))
    halves = {part: held_out(examples, part, 0).first for part in ("tuning", "report")}
    assert sorted([*halves["tuning"], *halves["report"]], key=int) == list(examples.first)
    assert abs(len(halves["tuning"]) - len(halves["report"])) <= 1
    assert held_out(examples, "report", most).first == halves["report"][: most or None]


def test_long_prompts_lose_their_beginning_and_texts_their_end(folder):
    examples = Examples(("plane man takes off plays guitar river cooks",), None, np.array([0]))
    asking, reading = (Setting(make(folder), folder, HERE.device).train.tokenizer for make in (llama_spec, spec))
    for tokenizer, asks, shown in ((asking, True, " cooks\nSentiment:"), (reading, False, "[CLS] plane man [SEP]")):
        whole = encode(tokenizer, TASKS["sst2"], examples, 64, asks=asks).ids[0]["input_ids"]
        length = len(tokenizer(shown, add_special_tokens=False)["input_ids"])
        before = tokenizer.truncation_side
        cut = encode(tokenizer, TASKS["sst2"], examples, length, asks=asks).ids[0]["input_ids"]
        assert tokenizer.decode(cut) == shown
        assert tokenizer.truncation_side == before
        assert len(whole) > length


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), batch=st.integers(1, 12))
def test_evaluation_covers_all_examples_once_the_shortest_first(lengths, batch):
    from lm_experiments.batches import Encoded

    encoded = Encoded([{"input_ids": [0] * n} for n in lengths], np.zeros(len(lengths)), None)
    batches = list(by_length(encoded, batch))
    seen = np.concatenate(batches)
    assert sorted(seen) == list(range(len(lengths)))
    assert sorted(lengths) == [lengths[k] for k in seen]
    assert all(len(part) == batch for part in batches[:-1])


# ---- kills


def killed_everywhere(work: Path, data: Path, *modes: str) -> list[dict]:
    command = [sys.executable, ROOT / "tests" / "tiny_run.py", work, data, *modes]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(work)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_every_kill_is_survived(results: list[dict]) -> None:
    """Whatever was killed: the next call ends with the bits of a run that nobody killed."""
    for result in results:
        assert (result["code"], result["equal"]) == (0, True), result
        assert result["killed"] != 0, result
        assert not [name for name in result["left"] if ".tmp-" in name], result
    killed = {result["event"] for result in results}
    assert any("MANIFEST.json" in event for event in killed)
    assert any("tensors.safetensors" in event for event in killed)
    assert any("metrics.jsonl" in event or "config.json" in event for event in killed)


def test_killed_at_a_file_event_a_run_ends_as_if_it_had_not_been(folder, tmp_path):
    assert_every_kill_is_survived(killed_everywhere(tmp_path, folder, "torn"))


@pytest.mark.slow
def test_killed_at_every_file_event_in_every_way_a_run_ends_as_if_it_had_not_been(folder, tmp_path):
    results = killed_everywhere(tmp_path, folder, "before", "torn", "unsynced", "term")
    assert_every_kill_is_survived([result for result in results if result["mode"] != "term"])
    for result in results:
        assert (result["code"], result["equal"]) == (0, True), result
