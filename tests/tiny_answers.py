"""A tiny Llama whose tokenizer has a chat template, and instructions about random words with answers to them."""

import json
from pathlib import Path

import numpy as np

from lm_experiments.runs import Pretrain
from tests import tiny_texts
from tests.tiny_models import WORDS, llama

TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<end>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<end>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
DRAW = np.random.default_rng(1)


def entry(number: int) -> dict[str, str]:
    """Of any length; every other one has an input."""
    asked, more, told = (" ".join(DRAW.choice(WORDS, DRAW.integers(1, 8))) for _ in range(3))
    return {"instruction": f"{number} {asked}", "input": more if number % 2 else "", "output": told}


ENTRIES = [entry(number) for number in range(90)]


def written(place: Path) -> Path:
    """The folder with llama/ and pairs/ in it."""
    tokenizer, model = llama([" ".join(WORDS), "<user>\n<assistant>\n"])
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(place / "llama")
    tokenizer.save_pretrained(place / "llama")
    (place / "pairs").mkdir()
    (place / "pairs" / "pairs.json").write_text(json.dumps(ENTRIES))
    return place


def spec(place: Path, **changes: object) -> Pretrain:
    """Seven steps."""
    small = {"model": str(place / "llama"), "text": "instructions", "length": 64, "lr": 1e-3, "held_out": 0}
    return tiny_texts.spec(**{**small, **changes})
