"""A tiny BERT with WordPiece, a tiny Llama with byte-level BPE, STS-B and SST-2 in files: all random, all local."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_experiments.finetune import finetune
from lm_experiments.processes import Processes
from lm_experiments.runs import FineTune
from lm_experiments.tasks.text import TASKS

WORDS = ("plane", "man", "takes", "off", "plays", "guitar", "river", "cooks", "slowly", "red")
HERE = Processes(0, 1, torch.device("cpu"))
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}


def made(place: Path) -> Path:
    """The folder with bert/, llama/, STS-B/ and SST-2/ in it."""
    corpus = [" ".join(WORDS), *(task.prompt.format(first="a", second="b") for task in TASKS.values())]
    corpus += [word for task in TASKS.values() for word in task.words]
    for name, (tokenizer, model) in {"bert": bert(corpus), "llama": llama(corpus)}.items():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # the library's own starts are too small for an adapter to matter
            parameter.data.normal_(0, 0.2, generator=generator)
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    draw = np.random.default_rng(0)
    for task, header in (("STS-B", "sentence1\tsentence2\tscore"), ("SST-2", "sentence\tlabel")):
        (place / task).mkdir()
        for file in ("train.tsv", "dev.tsv"):
            rows = [row(task, *(draw.choice(WORDS, draw.integers(1, 9)) for _ in range(2))) for _ in range(40)]
            (place / task / file).write_text("\n".join([header, *rows]) + "\n")
    return place


def row(task: str, first: np.ndarray, second: np.ndarray) -> str:
    if task == "SST-2":
        return f"{' '.join(first)}\t{int('plane' in first)}"
    return f"{' '.join(first)}\t{' '.join(second)}\t{min(len({*first} & {*second}), 5)}"


def bert(corpus: list[str]) -> tuple[PreTrainedTokenizerFast, BertForMaskedLM]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    ends = [("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(**SIZE, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64)
    return wrapped, BertForMaskedLM(config)


def llama(corpus: list[str]) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Padding on the left, as many causal models come."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, min_frequency=1, show_progress=False
        ),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", padding_side="left")
    size = {**SIZE, "vocab_size": tokenizer.get_vocab_size()}
    return wrapped, LlamaForCausalLM(LlamaConfig(**size, bos_token_id=0, eos_token_id=0))


def spec(folder: Path, **changes) -> FineTune:
    """A run of 7 steps with the tiny BERT; its learning rates are large enough for every step to matter."""
    small = {"model": str(folder / "bert"), "examples": 12, "steps": 7, "batch": 4, "every": 3, "rank": 4, "lr": 0.01}
    return FineTune(**{**small, "length": 32, "scale": 0.1, "head_lr": 0.01, **changes})


def llama_spec(folder: Path, **changes) -> FineTune:
    """One that answers SST-2 by words."""
    return spec(folder, **{"model": str(folder / "llama"), "task": "sst2", **changes})


def run(run: FineTune, place: Path, folder: Path, **options) -> dict:
    return finetune(run, place, folder, here=HERE, **options)


def without_time(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "seconds"}
