"""torchrun ... two_answers.py PLACE WORK: two processes learn answers; the first leaves what was found."""

import json
import sys
from pathlib import Path

from lm_experiments.pretrain import pretrain
from lm_experiments.processes import processes
from tests.tiny_answers import spec
from tests.tiny_models import without_time

RUNS = {"ddp": {"batch": 5, "accumulate": 2}, "fsdp": {"batch": 5, "accumulate": 2, "optimizer": "galore"}}

if __name__ == "__main__":
    place, work = map(Path, sys.argv[1:])
    with processes() as here:
        for name, changes in RUNS.items():
            what, folder = spec(place, **changes), work / name
            found = pretrain(what, folder, place / "pairs", here=here, parallel=name)  # type: ignore[arg-type]
            if here.first:
                (work / f"{name}.json").write_text(json.dumps(without_time(found)))
