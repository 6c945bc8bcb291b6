"""A little text of random words in a file, and pre-training runs on it that take a moment."""

from pathlib import Path

import numpy as np
import torch

from lm_experiments.pretrain import pretrain
from lm_experiments.processes import Processes
from lm_experiments.runs import Pretrain
from lm_experiments.tasks.streams import BORDER
from tests.tiny_models import WORDS

HERE = Processes(0, 1, torch.device("cpu"))
DRAW = np.random.default_rng(0)
DOCUMENTS = [" ".join(DRAW.choice(WORDS, DRAW.integers(20, 60))) for _ in range(80)]


def written(place: Path) -> Path:
    """The folder with the documents."""
    folder = place / "text"
    folder.mkdir()
    (folder / "words.txt").write_text(BORDER.join(DOCUMENTS))
    return folder


def spec(**changes) -> Pretrain:
    """Seven steps of the smallest size."""
    small = {"model": "tiny", "text": "files", "rank": 4, "gap": 3, "steps": 7, "batch": 4, "length": 24, "every": 3}
    return Pretrain(**{**small, "held_out": 12, **changes})


def run(what: Pretrain, place: Path, folder: Path, **options) -> dict:
    return pretrain(what, place, folder, here=HERE, **options)
