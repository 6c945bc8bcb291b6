"""Pretrained models: what is loaded is what was saved, what is new comes from the seed, what is broken is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lm_experiments import assets
from lm_experiments import models as ours
from lm_experiments.models import load
from lm_experiments.tasks.text import TASKS

ROOT = Path(__file__).parents[1]
WORDS = {word: k for k, word in enumerate(["<unk>", "<end>", "a", "plane", "takes", "off", "man", "plays"])}
SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
ENDS = "bos_token_id", "eos_token_id", "pad_token_id"
MADE = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL, num_hidden_layers=3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=3, **dict.fromkeys(ENDS[:2], 1))),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_embd=16, n_head=2, n_layer=3, bos_token_id=1, eos_token_id=1)
    ),
    "smollm3": lambda: SmolLM3ForCausalLM(  # its config lists the kind of each layer
        SmolLM3Config(**SMALL, num_key_value_heads=2, num_hidden_layers=3, **dict.fromkeys(ENDS, 1))
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=3, decoder_start_token_id=0)
    ),
}
CAUSAL = ("llama", "gpt2", "smollm3")
NEW = {  # what a classifier has and the checkpoint has not, biases aside, which start at zero
    "bert": {"bert.pooler.dense.weight", "classifier.weight"},
    "llama": {"score.weight"},
    "gpt2": {"score.weight"},
    "smollm3": {"score.weight"},
    "t5": {"classification_head.dense.weight", "classification_head.out_proj.weight"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder for each architecture, with random weights and a tokenizer that cannot pad by itself."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, make in MADE.items():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = make()
            for parameter in model.parameters():  # the library's own starts are too small to be told apart
                parameter.data.normal_(0, 0.3)
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder / name)
    return folder


def logits(model, *texts):
    ids = torch.tensor([[WORDS[word] for word in text.split()] for text in texts])
    with torch.no_grad():
        return model(input_ids=ids).logits


def fetched(name):
    try:
        return assets.fetch(name)
    except ConnectionError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_is_what_was_saved(saved, name):
    model, _ = load(str(saved / name))
    original = AutoModelForCausalLM.from_pretrained(saved / name)
    assert torch.equal(logits(model, "a plane takes off"), logits(original, "a plane takes off"))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", CAUSAL)
def test_fewer_layers_are_the_first_ones_and_can_be_saved(saved, tmp_path, name):
    model, tokenizer = load(str(saved / name), layers=2)
    cut = AutoModelForCausalLM.from_pretrained(saved / name)
    layers = cut.transformer.h if name == "gpt2" else cut.model.layers
    del layers[2]
    assert model.config.num_hidden_layers == 2
    assert torch.equal(logits(model, "a man"), logits(cut, "a man"))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    again, _ = load(str(tmp_path))
    assert torch.equal(logits(again, "a man"), logits(cut, "a man"))
    whole = AutoModelForCausalLM.from_pretrained(saved / name)
    assert not torch.allclose(logits(model, "a man"), logits(whole, "a man"))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_classifier_has_the_saved_body_and_a_head_from_the_seed(saved, name, classes):
    state = torch.random.get_rng_state()
    one, same, other = (load(str(saved / name), classes=classes, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [model.state_dict() for model in (one, same, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert {key for key in weights[0] if not torch.equal(weights[0][key], weights[2][key])} == NEW[name]
    body = load_file(saved / name / "model.safetensors")
    within = {key: key if key in body else key.removeprefix("transformer.") for key in weights[0]}  # T5 has no prefix
    held = [key for key in weights[0] if within[key] in body]
    assert all(torch.equal(weights[0][key], body[within[key]]) for key in held)
    assert len(held) >= len(weights[0]) - 6  # T5: two biases more, and two names of the shared embedding
    assert logits(one, "a man plays <end>").shape == (1, classes)
    assert one.config.problem_type == ("regression" if classes == 1 else "single_label_classification")


def test_a_head_of_the_right_width_is_kept_and_another_is_replaced(saved, tmp_path):
    head, tokenizer = load(str(saved / "bert"), classes=3)
    for part in (head, tokenizer):
        part.save_pretrained(tmp_path)
    kept, replaced = load(str(tmp_path), classes=3, seed=9)[0], load(str(tmp_path), classes=2, seed=9)[0]
    assert torch.equal(kept.classifier.weight, head.classifier.weight)
    assert replaced.classifier.weight.shape == (2, 16)
    assert torch.equal(replaced.bert.pooler.dense.weight, head.bert.pooler.dense.weight)


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_does_not_change_what_a_classifier_says(saved, name):
    model, tokenizer = load(str(saved / name), classes=2)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1
    with torch.no_grad():
        both = model(**tokenizer(["a man", "a plane takes off"], return_tensors="pt", padding=True)).logits
        alone = model(**tokenizer(["a man"], return_tensors="pt")).logits
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_in_the_asked_dtype(saved, dtype):
    model, _ = load(str(saved / "llama"), classes=2, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_dropout_is_the_configs_or_the_asked_one(saved):
    def rates(model):
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates(load(str(saved / "bert"), classes=2)[0]) == {0.1}
    for rate in (0.0, 0.3):
        assert rates(load(str(saved / "bert"), classes=2, dropout=rate)[0]) == {rate}
        assert rates(load(str(saved / "gpt2"), dropout=rate)[0]) == {rate}
        assert load(str(saved / "llama"), dropout=rate)[0].model.layers[0].self_attn.attention_dropout == rate


def test_t5_is_cut_on_both_sides(saved):
    model, _ = load(str(saved / "t5"), classes=2, layers=1)
    assert [len(stack.block) for stack in (model.transformer.encoder, model.transformer.decoder)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {}, r"bert holds BertForMaskedLM, not a causal language model: give `classes`, or take smollm2"),
        ("t5", {}, r"t5 holds T5ForConditionalGeneration, not a causal"),
        ("llama", {"classes": 0}, r"classes = 0: take None \(language model\), 1 \(regression\) or"),
        ("llama", {"layers": 0}, r"layers = 0: .*llama has 3; take 1 to 3"),
        ("llama", {"layers": 4}, r"layers = 4: "),
        ("llama", {"dtype": torch.int8}, r"dtype = torch.int8: weights are trained in floating point"),
        ("llama", {"dropout": 1.0}, r"dropout = 1.0: it is the share of units left out; take 0 <= dropout < 1"),
        ("llama", {"dropout": float("nan")}, r"dropout = nan"),
    ],
)
def test_impossible_wishes_are_refused(saved, name, options, message):
    with pytest.raises(ValueError, match=message):
        load(str(saved / name), **options)


@pytest.mark.parametrize("name", ["nothing", "./org/name", "org/name/more", "org/name@", "", "../org", "/no/where"])
def test_a_name_that_is_neither_folder_nor_on_the_hub_is_refused(name):
    with pytest.raises(FileNotFoundError, match=r"no model .*: give minilm, smollm2, an existing folder, or org/name"):
        load(name)


def test_folders_without_a_whole_model_are_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json: give a folder that save_pretrained wrote"):
        load(str(tmp_path))
    model, tokenizer = load(str(saved / "llama"))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for classes in (None, 2):
        with pytest.raises(ValueError, match=r"lacks 1 weights of its own config, model.layers.1.mlp.up_proj.weight"):
            load(str(tmp_path), classes=classes)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"is not a whole model folder with safetensors: "):
        load(str(tmp_path))


def test_code_that_a_model_brings_is_never_run(saved, tmp_path):
    load(str(saved / "llama"))[1].save_pretrained(tmp_path)
    auto = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    (tmp_path / "theirs.py").write_text("raise SystemExit('their code ran')")
    with pytest.raises(ValueError, match=r"trust_remote_code"):
        load(str(tmp_path))


def test_names_on_the_hub_and_their_revisions_are_found_in_its_cache_and_missing_ones_say_what_to_do(saved, tmp_path):
    """A cache as huggingface_hub lays it out, and another process, since both libraries read the variables once."""
    for revision, name in (("main", "llama"), ("old", "gpt2")):
        cached, commit = tmp_path / "models--org--name", ("a" if revision == "main" else "b") * 40
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / revision).write_text(commit)
        (cached / "snapshots").mkdir(exist_ok=True)
        (cached / "snapshots" / commit).symlink_to(saved / name)
    program = """
from lm_experiments.models import load
for name in ("org/name", "org/name@old", "org/other", "org/name@new"):
    try:
        print(type(load(name)[0]).__name__)
    except ConnectionError as error:
        print(str(error).replace("\\n", " "))
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    main, old, other, new = done.stdout.splitlines()
    assert (main, old) == ("LlamaForCausalLM", "GPT2LMHeadModel")
    for name, said in (("org/other", other), ("org/name@new", new)):
        assert said.startswith(f"could not get {name} from the Hub: ")
        assert said.endswith("or give a local folder; or take minilm or smollm2, which ./run assets brings.")


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    """A fetched file whose conversion the test defines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (name,) = assets.ASSETS["smollm2"].hashes
    asset = replace(assets.ASSETS["smollm2"], hashes={name: assets._sha256(b"weights")})
    monkeypatch.setitem(assets.ASSETS, "smollm2", asset)
    assets.write_atomically(assets.cache() / "smollm2" / name, b"weights")
    return assets.cache()


def written(gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"converted " + gguf.read_bytes())


def test_the_conversion_is_done_once_and_its_result_is_checked(gguf_file, monkeypatch):
    monkeypatch.setattr(ours, "_convert", written)
    folder = ours.smollm2()
    assert json.loads((folder / ours.NOTE).read_text())["gguf"] == assets._sha256(b"weights")
    monkeypatch.setattr(ours, "_convert", None)
    assert ours.smollm2() == folder
    assert {path.name for path in gguf_file.iterdir()} == {"smollm2", "smollm2-float32"}
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"smollm2-float32 is not what origin.json in it says: delete the folder"):
        ours.smollm2()


def test_a_conversion_of_another_file_is_refused(gguf_file, monkeypatch):
    monkeypatch.setattr(ours, "_convert", written)
    note = ours.smollm2() / ours.NOTE
    note.write_text(note.read_text().replace(assets._sha256(b"weights"), assets._sha256(b"others")))
    with pytest.raises(ValueError, match=r"delete the folder"):
        ours.smollm2()


def test_an_interrupted_conversion_leaves_nothing(gguf_file, monkeypatch):
    def interrupted(gguf, folder):
        written(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ours.smollm2()
    assert [path.name for path in gguf_file.iterdir()] == ["smollm2"]


def test_of_two_conversions_at_once_the_first_to_finish_counts(gguf_file, monkeypatch):
    def overtaken(gguf, folder):
        monkeypatch.setattr(ours, "_convert", written)
        ours.smollm2()
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"late")

    monkeypatch.setattr(ours, "_convert", overtaken)
    assert (ours.smollm2() / "model.safetensors").read_bytes() == b"converted weights"
    assert {path.name for path in gguf_file.iterdir()} == {"smollm2", "smollm2-float32"}


def test_smollm2_is_the_gguf_file_dequantised():
    reader = gguf.GGUFReader(fetched("smollm2"))
    there = {tensor.name: tensor for tensor in reader.tensors}
    model, tokenizer = load("smollm2", layers=2)
    held = dict(model.named_parameters())
    assert len(reader.tensors) == 272
    for theirs, name in {
        "token_embd": "embed_tokens",
        "blk.1.ffn_down": "layers.1.mlp.down_proj",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
        "blk.1.attn_norm": "layers.1.input_layernorm",
        "output_norm": "norm",
    }.items():
        tensor = there[f"{theirs}.weight"]
        weights = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(held[f"model.{name}.weight"], weights)
    query = there["blk.0.attn_q.weight"]  # llama.cpp interleaves the two halves that a rotation mixes
    weights = torch.from_numpy(gguf.dequantize(query.data, query.tensor_type).copy())
    halves = weights.reshape(9, 32, 2, 576).transpose(1, 2).reshape(576, 576)
    assert torch.equal(held["model.layers.0.self_attn.q_proj.weight"], halves)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2


def test_smollm2_knows_the_capital_of_france():
    fetched("smollm2")
    model, tokenizer = load("smollm2", dtype=torch.bfloat16)
    words = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**words).logits[0, -1].argmax()) == " Paris"


def test_answers_are_told_apart_by_smollm2s_first_token():
    fetched("smollm2")
    _, tokenizer = load("smollm2", layers=1)
    for task in TASKS.values():
        assert all(len(tokenizer(word)["input_ids"]) == 1 for word in task.words)


def test_minilm_finds_what_is_alike():
    fetched("minilm")
    model, tokenizer = load("minilm", classes=1)
    texts = ["A plane is taking off.", "An air plane is taking off.", "A man is slicing an onion."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model.bert(**batch).last_hidden_state * batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize(states.sum(1), dim=-1)
    alike, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > 0.9
    assert other < 0.2
    with pytest.raises(ValueError, match=r"minilm holds BertModel, not a causal language model"):
        load("minilm")
    plain = AutoModelForSequenceClassification.from_pretrained(assets.fetch("minilm"), num_labels=1)
    assert torch.equal(plain.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
