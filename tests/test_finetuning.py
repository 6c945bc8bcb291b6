"""The loop: equal to a plain one, resumable bit for bit, alone or in two processes; and what it refuses."""

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
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy, mse_loss
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_experiments import checkpoints, records
from lm_experiments.__main__ import main
from lm_experiments.adapt import adapted, parameter_groups, trainable
from lm_experiments.batches import by_length, encode, held_out, order
from lm_experiments.comparison import interval, scores
from lm_experiments.experiments import EXPERIMENTS, GRIDS, TUNING, chosen, recorded
from lm_experiments.finetune import Diverged, Setting, Stopped, finetune
from lm_experiments.processes import Processes
from lm_experiments.runs import METHODS, FineTune
from lm_experiments.tasks.text import TASKS, Examples
from tests.test_text_tasks import DATA

ROOT = Path(__file__).parents[1]
WORDS = [
    "<unk>",
    "<end>",
    *"abcdefghij",
    "First",
    "Second",
    "Similarity",
    ":",
    "Review",
    "Sentiment",
    "negative",
    "positive",
]
HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny BERT, a tiny Llama, STS-B and SST-2, all of random words."""
    place = tmp_path_factory.mktemp("lm")
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "bert": BertForMaskedLM(BertConfig(**size, num_hidden_layers=2, max_position_embeddings=64)),
            "llama": LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2, bos_token_id=1, eos_token_id=1)),
        }
    for name, model in made.items():
        for parameter in model.parameters():  # the library's own starts are too small for an adapter to matter
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        model.save_pretrained(place / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(
            place / name
        )
    draw = np.random.default_rng(0)
    for task, header in (("STS-B", "sentence1\tsentence2\tscore"), ("SST-2", "sentence\tlabel")):
        (place / task).mkdir()
        for file in ("train.tsv", "dev.tsv"):
            lines = [header]
            for _ in range(40):
                first, second = (" ".join(draw.choice([*"abcdefghij"], draw.integers(1, 9))) for _ in range(2))
                shared = len({*first.split()} & {*second.split()})
                lines.append(
                    f"{first}\t{second}\t{min(shared, 5)}" if task == "STS-B" else f"{first}\t{int('a' in first)}"
                )
            (place / task / file).write_text("\n".join(lines) + "\n")
    return place


def spec(folder: Path, **changes) -> FineTune:
    small = {"model": str(folder / "bert"), "examples": 12, "steps": 7, "batch": 4, "every": 3, "rank": 4, "lr": 0.01}
    return FineTune(**{**small, "length": 32, "scale": 0.1, **changes})


def trained(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.latest(folder)
    assert found is not None
    return found.tensors


def without_time(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "seconds"}


# ---- the loop


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_is_a_plain_one(folder, tmp_path, method):
    """Ten lines of torch, from the same start and on the same batches, without dropout."""
    run = spec(folder, method=method, dropout=0.0, decay=0.5, accumulate=2)
    found = finetune(run, tmp_path / "run", folder, here=HERE)
    setting = Setting(run, folder, HERE.device)
    torch.manual_seed(run.seed)
    model = adapted(setting.model, run, setting.train.batch(order(12, 4, 0, 1)), setting.loss)
    optimizer = torch.optim.AdamW(parameter_groups(model, run), eps=1e-6, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / 6)
    losses = []
    for step in range(1, 8):
        batch = setting.train.batch(order(12, 4, 0, step))
        loss = mse_loss(model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, 0], batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(found["losses"], losses, rtol=2e-4)  # float32, parts summed in another order
    assert found["losses"][-1] != pytest.approx(found["losses"][0], rel=1e-3)


def test_head_and_outer_factors_learn_at_their_own_rates(folder):
    run = spec(folder, gamma=0.05, head_lr=0.5)
    setting = Setting(run, folder, HERE.device)
    model = adapted(setting.model, run, setting.train.batch(np.arange(4)), setting.loss)
    rates = {id(p): group["lr"] for group in parameter_groups(model, run) for p in group["params"]}
    for name, parameter in model.named_parameters():
        kind = "head" if "classifier" in name else "core" if "cores" in name else "outer"
        expected = {"head": 0.5, "core": 0.01, "outer": 0.0005}[kind]
        assert rates.get(id(parameter)) == (pytest.approx(expected) if parameter.requires_grad else None)
    assert trainable(model)["head"] == 17


def test_scores_start_at_their_mean_and_only_if_asked(folder):
    for centre in (True, False):
        setting = Setting(spec(folder, centre=centre), folder, HERE.device)
        expected = setting.train.labels.mean() if centre else 0.0
        assert setting.model.classifier.bias.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("texts", [["a b c", "d"], ["a", "b c d e f"]])
def test_a_causal_model_answers_by_words_at_its_last_token(folder, texts):
    run = spec(folder, model=str(folder / "llama"), task="sst2")
    setting = Setting(run, folder, HERE.device)
    task, tokenizer = TASKS["sst2"], setting.train.tokenizer
    examples = Examples(tuple(texts), None, np.array([0, 1]))
    batch = encode(tokenizer, task, examples, 32, asks=True).batch(np.arange(2))
    single = []
    for text, label in zip(texts, (0, 1), strict=True):
        ids = tokenizer(f"Review: {text}\nSentiment:", return_tensors="pt").input_ids
        logits = setting.model(input_ids=ids).logits[0, -1, [WORDS.index("negative"), WORDS.index("positive")]]
        single.append(cross_entropy(logits[None], torch.tensor([label])))
    assert setting.loss(setting.model, batch).item() == pytest.approx(sum(single).item() / 2, rel=1e-5)


# ---- resuming


CASES = [
    {"method": "compressed"},
    {"method": "compressed", "gamma": 0.0, "watch": True},
    {"method": "lora", "watch": True, "precision": "bf16"},
    {"method": "wide"},
    {"method": "full", "decay": 0.1, "lr": 1e-3},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(folder, tmp_path, changes):
    run = spec(folder, dropout=0.3, **changes)
    whole = finetune(run, tmp_path / "whole", folder, here=HERE, save_every=100)

    def stop(at):
        def report(step, loss):
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        return report

    for at in (1, 3, 6):  # noticed at the end of the next step, which may be the last
        with pytest.raises(Stopped) as stopped:
            finetune(run, tmp_path / "parts", folder, here=HERE, save_every=100, report=stop(at))
        assert stopped.value.code == 143
    parts = finetune(run, tmp_path / "parts", folder, here=HERE, save_every=100)
    assert without_time(parts) == without_time(whole)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    first, second = trained(tmp_path / "parts"), trained(tmp_path / "whole")
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_depends_on_seed_and_step(folder, tmp_path, monkeypatch):
    """torch's CPU generator takes 32 bits of a seed: what differs above them drops the same units."""
    seeds, honest = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (seeds.append(seed % 2**32), honest(seed)))
    for seed in (0, 1):
        finetune(spec(folder, method="lora", seed=seed), tmp_path / str(seed), folder, here=HERE)
    assert len(set(seeds)) == len(seeds) == 2 * (1 + 7)  # the adapter's start, and each step


@pytest.mark.slow
def test_a_run_killed_at_every_file_event_ends_as_if_it_had_not_been(folder, tmp_path):
    """By ckpt-chaos: before each, after half of each file, with all that was not synced lost, or by SIGTERM."""
    toy = ROOT / "tests" / "toy_trainer.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, toy, "--everywhere", tmp_path, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"mode"')]
    bad = [kill for kill in kills if kill["code"] or not kill["equal"] or kill["killed"] not in (137, 143, -15)]
    assert bad == []
    assert len(kills) > 80
    assert all(not name.count(".tmp-") for kill in kills for name in kill["left"])


def test_another_spec_in_the_same_folder_is_refused(folder, tmp_path):
    run = spec(folder, steps=2)
    finetune(run, tmp_path, folder, here=HERE)
    with pytest.raises(ValueError, match=r"lr: 0\.01 there, 0\.02 here"):
        finetune(replace(run, lr=0.02), tmp_path, folder, here=HERE)


def test_a_loss_that_is_not_finite_stops_before_anything_is_spoilt(folder, tmp_path, monkeypatch):
    run = spec(folder, steps=6)
    honest = Setting.loss

    def poisoned(self, model, batch):
        poisoned.calls += 1
        return honest(self, model, batch) * (float("nan") if poisoned.calls == 5 else 1)  # the first is calibration

    poisoned.calls = 0
    monkeypatch.setattr(Setting, "loss", poisoned)
    with pytest.raises(Diverged, match=r"step 4 of .*: the loss is not finite.*smaller lr"):
        finetune(run, tmp_path, folder, here=HERE, save_every=1)
    found = checkpoints.latest(tmp_path)
    assert found.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values() if tensor.is_floating_point())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])  # 8 s each, most of it for importing torch twice
def test_two_processes_train_as_one_does(folder, tmp_path, parallel):
    run = spec(folder, dropout=0.0, steps=5, every=5)
    alone = finetune(run, tmp_path / "alone", folder, here=HERE)
    program = f"""
import sys
from pathlib import Path
from lm_experiments.finetune import finetune
from lm_experiments.processes import processes
from lm_experiments.runs import FineTune
run = FineTune(**{run.described()!r})
with processes() as here:
    assert here.size == 2
    found = finetune(run, Path({str(tmp_path / "two")!r}), Path({str(folder)!r}), here=here, parallel={parallel!r})
    if here.first:
        import json
        Path({str(tmp_path / "found.json")!r}).write_text(json.dumps(found))
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, tmp_path / "program.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(found["scores"][-1]["pearson"], alone["scores"][-1]["pearson"], atol=1e-4)


# ---- batches


@given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation_drawn_from_the_seed(count, batch, seed):
    steps = -(-3 * count // batch)
    seen = np.concatenate([order(count, batch, seed, step) for step in range(1, steps + 1)])[: 3 * count]
    epochs = seen.reshape(3, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    if count > 8:
        assert (epochs[0] != epochs[1]).any()
        assert (order(count, count, seed, 1) != order(count, count, seed + 1, 1)).any()


@given(count=st.integers(2, 50), most=st.integers(0, 30))
def test_halves_of_the_validation_examples_share_none(count, most):
    examples = Examples(tuple(map(str, range(count))), None, np.zeros(count))
    halves = {part: held_out(examples, part, 0).first for part in ("tuning", "report")}
    assert sorted([*halves["tuning"], *halves["report"]], key=int) == list(examples.first)
    assert held_out(examples, "report", most).first == halves["report"][: most or None]


def test_long_prompts_lose_their_beginning_and_texts_their_end(folder):
    setting = Setting(spec(folder), folder, HERE.device)
    tokenizer, task = setting.train.tokenizer, TASKS["sst2"]
    examples = Examples(("a b c d e f g h i j",), None, np.array([0]))
    asked, read = (encode(tokenizer, task, examples, 5, asks=asks).ids[0]["input_ids"] for asks in (True, False))
    assert [WORDS[k] for k in asked] == ["h", "i", "j", "Sentiment", ":"]
    assert [WORDS[k] for k in read] == [*"abcde"]
    batches = list(by_length(setting.test, 7))
    assert sorted(np.concatenate(batches)) == list(range(len(setting.test)))


# ---- experiments, records, comparison


@pytest.mark.parametrize("size", ["small", "full"])
def test_experiments_are_of_different_runs_and_tune_on_other_examples(size):
    for name, experiment in EXPERIMENTS.items():
        cells = experiment.cells(size)
        assert len({cell.key for cell in cells}) == len(cells) > 1
        tuned = {cell.part for cell in cells} == {"tuning"}
        assert tuned == (name == "rates") == (not experiment.tuned)
        assert all((cell.seed >= TUNING) == tuned for cell in cells)


def test_the_best_rate_is_chosen_and_a_missing_one_is_named(tmp_path):
    cell = EXPERIMENTS["fewshot"].cells("small")[0]
    with pytest.raises(ValueError, match=r"no record of lr = 0\.0001 for lora, stsb: python -m lm_experiments rates"):
        chosen(cell, lambda run: records.read(run, tmp_path))
    for tried in EXPERIMENTS["rates"].cells("small"):
        score = {"pearson": tried.lr == GRIDS["lora"][1], "accuracy": 0.5}
        records.write(tried, {"scores": [{"step": tried.steps, **score}]}, {}, tmp_path)
    assert chosen(cell, lambda run: records.read(run, tmp_path)) == replace(cell, lr=GRIDS["lora"][1])
    with pytest.raises(ValueError, match=r"30 of 30 runs of 'fewshot' have no record yet: python -m lm_experiments"):
        recorded("fewshot", "small", 5, tmp_path)


def test_records_come_back_and_those_of_other_runs_are_refused(tmp_path):
    run = FineTune(lr=0.123)
    assert records.read(run, tmp_path) is None
    records.write(run, {"scores": [{"step": 200, "pearson": 1 / 3}], "losses": [2 / 3]}, {"threads": 1}, tmp_path)
    found = records.read(run, tmp_path)
    assert (found.score("pearson"), found.found["losses"], found.where) == (0.33333, [0.66667], {"threads": 1})
    records.path(run, tmp_path).rename(records.path(replace(run, lr=0.5), tmp_path))
    with pytest.raises(ValueError, match="is the record of another run"):
        records.read(replace(run, lr=0.5), tmp_path)


def test_scores_are_grouped_by_field_and_intervals_are_students():
    runs = [FineTune(seed=seed, rank=rank) for seed in (1, 0) for rank in (2, 4)]
    found = [{"scores": [{"step": 200, "pearson": run.rank + run.seed / 8}]} for run in runs]
    grouped = scores([records.Record(run, result, {}) for run, result in zip(runs, found, strict=True)], "rank")
    assert {key: list(values) for key, values in grouped.items()} == {(2,): [2, 2.125], (4,): [4, 4.125]}
    low = interval(np.array([1.0, 2.0, 3.0]))
    assert (low.mean, low.half) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-6))  # t(2, .975), tables
    with pytest.raises(ValueError, match="two at least"):
        interval(np.array([1.0]))


# ---- the command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sst3"}, "task = 'sst3': take one of stsb"),
        ({"rank": 3}, "rank = 3 is odd"),
        ({"steps": 0}, "steps = 0: take 1 or more"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"decay": 2.0}, "decay"),
        ({"method": "full", "watch": True}, "updates are watched in adapters only"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FineTune(**changes)


def test_a_finished_run_is_not_run_again(folder, tmp_path, capsys):
    options = [
        "--data",
        folder,
        "--runs",
        tmp_path / "runs",
        "--results",
        tmp_path / "records",
        "--steps",
        2,
        "--batch",
        2,
    ]
    arguments = ["finetune", "--task", "stsb", "--model", folder / "bert", "--examples", 8, "--rank", 2, *options]
    for _ in range(2):
        assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("✓ 1 of 1") == 1
    assert printed.out.count("bert-stsb-compressed-r2-n8") == 2
    (kept,) = (tmp_path / "records").glob("*.json")
    record = json.loads(kept.read_text())
    assert len(record["found"]["losses"]) == 2
    assert set(record["where"]) == {"git", "versions", "hardware", "threads", "processes"}


def test_the_command_teaches(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)
    with pytest.raises(SystemExit, match="did you mean 'fewshot'"):
        main(["fewshots"])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="no folder of real data: LOWDIM_DATA=FOLDER")
@pytest.mark.parametrize("method", ["lora", "compressed"])
def test_a_committed_record_begins_as_the_run_does_now(tmp_path, method):
    """Of the first seed: its held-out score before any step, and the losses of three steps."""
    run = next(r.spec for r in recorded("fewshot", "small", 1) if r.spec.method == method)
    record = records.read(run)
    found = finetune(replace(run, steps=3), tmp_path, DATA / "glue", here=HERE)
    assert found["data"] == record.found["data"]
    np.testing.assert_allclose(found["losses"], record.found["losses"][:3], rtol=1e-4)
    assert found["scores"][0]["pearson"] == pytest.approx(record.found["scores"][0]["pearson"], abs=1e-4)
