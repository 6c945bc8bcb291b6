"""Instructions and answers: what is predicted is the answer and nothing else, and every token of it counts alike."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lm_experiments import models
from lm_experiments.pretrain import Run, pretrain, started
from lm_experiments.tasks.instructions import read
from lm_experiments.tasks.streams import IGNORED, is_held_out
from tests.test_distributed import ROOT, TORCHRUN, environment
from tests.test_pretrain import check_resuming
from tests.tiny_answers import ENTRIES, spec, written
from tests.tiny_models import HERE
from tests.two_answers import RUNS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def tokenizer(place):
    return models.tokenizer_of(str(place / "llama"))


def question(entry: dict[str, str]) -> str:
    return entry["instruction"] + (f"\n\n{entry['input']}" if entry["input"] else "")


def sides(entries: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """What trains, and what is held out."""
    return [[entry for entry in entries if is_held_out(question(entry)) == side] for side in (False, True)]


def run(what, folder, place, **options):
    return pretrain(what, folder, place / "pairs", here=HERE, **options)


def saved(folder: Path, content: object) -> Path:
    path = folder / "some.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# ---- rows


def test_what_is_predicted_is_what_transformers_calls_the_assistants(place, tokenizer):
    """Its own masks, from the marks in the template; the whole in one piece, where ours are two."""
    text = read("instructions", 64, place / "pairs", tokenizer)
    for rows, entries in zip((text.train, text.held_out), sides(ENTRIES), strict=True):
        everything = np.arange(len(rows))
        tokens, labels = rows.rows(everything), rows.labels(everything)
        assert len(rows) == len(entries) > 1
        for row, label, entry in zip(tokens, labels, entries, strict=True):
            turns = [("user", question(entry)), ("assistant", entry["output"])]
            theirs = tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                return_assistant_tokens_mask=True,
                return_dict=True,
            )
            ids, answer = (np.array(theirs[key]) for key in ("input_ids", "assistant_masks"))
            until = np.flatnonzero(answer)[-1] + 1  # a new line follows, which is not the answer's
            assert row[:until].tolist() == ids[:until].tolist()
            expected = np.where(answer == 1, ids, IGNORED)[1:until]
            assert label.tolist() == [*expected, *[IGNORED] * (len(label) - len(expected))]
            assert tokenizer.decode(label[label != IGNORED]) == entry["output"] + "<end>"
        assert rows.predicted(everything) == (labels != IGNORED).sum()


def test_rows_are_as_long_as_the_longest_of_them_and_lose_their_end(place, tokenizer):
    whole, cut = (read("instructions", length, place / "pairs", tokenizer).train for length in (64, 24))
    sizes = [len(p) + len(a) for p, a in zip(whole.prompts, whole.answers, strict=True)]
    order = np.argsort(sizes)
    assert whole.rows(order[:3]).shape == (3, sizes[order[2]])
    assert cut.rows(np.arange(len(cut))).shape[1] == 25
    ends = {tuple(p): a for p, a in zip(whole.prompts, whole.answers, strict=True)}
    for prompt, answer in zip(cut.prompts, cut.answers, strict=True):
        assert answer == ends[tuple(prompt)][: 25 - len(prompt)]
        assert answer
    assert {len(p) + len(a) for p, a in zip(cut.prompts, cut.answers, strict=True)} >= {25}


def test_a_question_is_held_out_by_its_text_alone_with_all_its_answers(place, tokenizer, tmp_path):
    others = [{**entry, "output": f"{entry['output']} red"} for entry in ENTRIES]
    text = read("instructions", 64, saved(tmp_path, ENTRIES + others), tokenizer)
    assert [len(text.train), len(text.held_out)] == [2 * len(side) for side in sides(ENTRIES)]
    tokenizer.chat_template = f"plane {tokenizer.chat_template}"
    again = read("instructions", 64, saved(tmp_path, ENTRIES + others), tokenizer)
    assert again.held_out.answers == text.held_out.answers
    assert again.held_out.prompts != text.held_out.prompts
    assert again.fingerprint.keys() == text.fingerprint.keys()
    assert all(again.fingerprint[side] != text.fingerprint[side] for side in text.fingerprint)


def test_what_has_no_answer_or_no_room_for_one_is_left_out_and_counted(place, tokenizer, tmp_path, caplog):
    long = {"instruction": "guitar " * 80, "output": "red"}
    without = [{"instruction": f"{number} plane", "output": " \n"} for number in range(30)]
    text = read("instructions", 64, saved(tmp_path, [*ENTRIES, long, *without]), tokenizer)
    assert [len(text.train), len(text.held_out)] == [len(side) for side in sides(ENTRIES)]
    (line,) = caplog.messages
    assert line.startswith("31 of 121 instructions are left out: 30 without an answer, the others without room")


def test_a_data_set_of_the_hub_is_asked_for_and_read(place, tokenizer, monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options["revision"]))
        return datasets.Dataset.from_list([{**entry, "text": "all of it"} for entry in ENTRIES])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read("instructions:tatsu-lab/alpaca@main", 64, None, tokenizer)
    assert asked == [("tatsu-lab/alpaca", None, "main")]
    assert found.fingerprint == read("instructions", 64, place / "pairs", tokenizer).fingerprint
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"instruction": ["a"]}))
    with pytest.raises(ValueError, match="org/name has the columns instruction, but no output: take another data set"):
        read("instructions:org/name", 64, None, tokenizer)


# ---- the loop


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loss_is_the_mean_over_the_tokens_of_the_answers(place, tmp_path, accumulate):
    """A plain loop: one row after the other, without padding, all tokens of the batch's answers together."""
    what = spec(place, batch=5, accumulate=accumulate, warmup=0.0, floor=1.0)
    found = run(what, tmp_path, place)
    model, text = started(what, place / "pairs")
    adam = torch.optim.AdamW(model.parameters(), lr=what.lr, weight_decay=0.0)
    order = np.random.default_rng([0, 0]).permutation(len(text.train))
    losses, counts = [], []
    for step in range(7):
        parts = [entropies(model, text.train, k) for k in order[5 * step : 5 * step + 5]]
        loss = torch.cat(parts).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        counts.append([len(part) for part in parts])
    np.testing.assert_allclose([point["loss"] for point in found["curve"]], losses, rtol=2e-5)
    assert len(set(losses)) == 7
    assert found["tokens"] == np.sum(counts)
    assert np.std(counts, axis=1).max() > 1  # so that a mean of means is another
    with torch.no_grad():
        last = torch.cat([entropies(model, text.held_out, k) for k in range(len(text.held_out))]).mean()
    assert found["scores"][-1]["loss"] == pytest.approx(last.item(), rel=1e-5)


def entropies(model, rows, k):
    ids = torch.tensor([rows.prompts[k] + rows.answers[k]])
    return cross_entropy(model(input_ids=ids).logits[0, len(rows.prompts[k]) - 1 : -1], ids[0, len(rows.prompts[k]) :],
                         reduction="none")  # fmt: skip


def test_a_small_model_learns_the_answers_and_nothing_of_the_questions(place, tmp_path):
    """Every answer is the same: it is soon known by heart, and the questions are not."""
    same = saved(tmp_path, [{**entry, "output": "river cooks slowly"} for entry in ENTRIES])
    what = spec(place, steps=60, batch=16, every=60, lr=1e-2)
    found = pretrain(what, tmp_path / "run", same, here=HERE)
    assert found["scores"][0]["perplexity"] > 100
    assert found["scores"][-1]["perplexity"] < 1.5


@pytest.mark.parametrize(
    "changes", [{"precision": "mixed", "accumulate": 2}, {"optimizer": "galore"}, {"optimizer": "fira"}], ids=str
)
def test_a_run_goes_on_bit_for_bit(place, tmp_path, changes):
    check_resuming(spec(place, **changes), place / "pairs", tmp_path, (1, 3))


def test_other_pairs_in_the_same_folder_are_refused(place, tmp_path):
    what = spec(place, steps=2)
    run(what, tmp_path / "run", place)
    last = max(k for k, entry in enumerate(ENTRIES) if not is_held_out(question(entry)))
    changed = [{**entry, "output": "plane"} if k == last else entry for k, entry in enumerate(ENTRIES)]
    with pytest.raises(ValueError, match=r"begun with other examples \(train\): give the same data"):
        pretrain(what, tmp_path / "run", saved(tmp_path, changed), here=HERE)


def test_two_processes_learn_as_one_does(place, tmp_path):
    """Their shares of a batch have different numbers of answers' tokens, and so have the parts of a share."""
    command = [*TORCHRUN, ROOT / "tests" / "two_answers.py", place, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    for name, changes in RUNS.items():
        together, alone = (
            json.loads((tmp_path / f"{name}.json").read_text()),
            run(spec(place, **changes), tmp_path / f"{name} alone", place),
        )
        for key in ("curve", "scores"):
            one, other = ([entry["loss"] for entry in found[key]] for found in (alone, together))
            np.testing.assert_allclose(other, one, rtol=5e-5)
        assert together["tokens"] == alone["tokens"]


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"some\.json is no JSON \(.*\): mend it, or take it away"),
        (
            {"instruction": "a", "output": "b"},
            r"some\.json holds a dict: expected a list of objects with \"instruction",
        ),
        ([*ENTRIES, {"instruction": "a"}], r'some\.json, entry 91 is \{"instruction": "a"\}: expected an object with'),
        ([{"output": "a"}], r"some\.json, entry 1 is .*: expected an object"),
        ([{"instruction": "", "output": "a"}], r"some\.json, entry 1 is .*: expected an object"),
        ([{"instruction": "a", "input": 3, "output": "a"}], r"some\.json, entry 1 is .*: expected an object"),
        (["a"], r'some\.json, entry 1 is "a": expected an object'),
        ([], "'instructions' gives nothing to train on, of 0 instructions"),
        ([{"instruction": "a", "output": ""}], "gives nothing to train on, of 1 instructions with length = 64"),
        (sides(ENTRIES)[0], r"gives nothing to hold out, of \d+ instructions with length = 64: give more of them"),
    ],
)
def test_pairs_that_are_none_are_refused(tokenizer, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read("instructions", 64, saved(tmp_path, content), tokenizer)


def test_what_cannot_be_read_is_refused(place, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no instructions: give a JSON file, or a folder of \*\.json"):
        read("instructions", 64, tmp_path, tokenizer)
    for name, source in (("instructions", None), ("instructions:org/name", tmp_path)):
        with pytest.raises(ValueError, match=r"'instructions' needs one, 'instructions:org/name' has none"):
            read(name, 64, source, tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}{% if add_generation_prompt %} so:{% endif %}"
    with pytest.raises(ValueError, match=r"the chat template's prompt '.* so:' is not how it begins an answer"):
        read("instructions", 64, place / "pairs", tokenizer)
    tokenizer.chat_template = None
    for nothing in (tokenizer, None):
        with pytest.raises(ValueError, match="text = 'instructions' needs a tokenizer with a chat template"):
            read("instructions", 64, place / "pairs", nothing)


def test_a_model_from_scratch_learns_answers_with_a_tokenizer_of_another(place, tmp_path):
    what = replace(spec(place), model="tiny", tokenizer=str(place / "llama"))
    found = run(what, tmp_path, place)
    assert found["scores"][-1]["loss"] < found["scores"][0]["loss"]


# ---- the real one


@pytest.mark.slow
def test_smollm2_knows_which_answer_belongs_to_which_question(tmp_path):
    """With its own template; with capitals shuffled among the lands, answers are less likely to it."""
    capitals = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Egypt": "Cairo"}
    asked = [f"{how} the capital of {land}{end}" for how, end in (("What is", "?"), ("Name", ".")) for land in capitals]
    asked = [f"{text}{more}" for text in asked for more in ("", *(f" Question {number}." for number in range(9)))]
    losses = []
    for turn in (0, 2):
        told = [*capitals.values()][turn:] + [*capitals.values()][:turn]
        answers = dict(zip(capitals, told, strict=True))
        pairs = [
            {"instruction": text, "output": f"The capital of {land} is {answers[land]}."}
            for text in asked
            for land in capitals
            if land in text
        ]
        what = spec(tmp_path, model="smollm2", held_out=0)
        body, text = started(what, saved(tmp_path, pairs))
        first = models.tokenizer_of(str(models.smollm2())).decode(text.train.prompts[0])
        assert first.endswith("<|im_start|>assistant\n")
        body.eval()
        losses.append(Run(what, text, body, body, tmp_path, HERE).evaluated(0)["scores"]["loss"])
    assert losses[0] < 2
    assert losses[1] > losses[0] + 0.2
