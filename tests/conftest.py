"""One thread for each of two processes, and hypothesis as in CI: the same examples every time.

HYPOTHESIS_PROFILE=draft is quick and does not shrink what fails; thorough looks for a long time."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy and torch are imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import re

import pytest
import torch
from hypothesis import Phase, settings
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile(
    "draft", derandomize=True, deadline=None, max_examples=15, phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class ByFigure(LoadScopeScheduling):
    """On one worker all tests of one figure, whose data are computed once; of sweeps, which start others; and those of
    two processes, which are started once."""

    def _split_scope(self, nodeid: str) -> str:
        figure = re.search(r"test_figures\.py::.*\[(?:default-|full-)?([a-z_]+)\]$", nodeid)
        file, _, test = nodeid.partition("::")
        if file.endswith("distributed.py") or (file.endswith("test_pretrain.py") and "_processes" in test):
            return file
        return "sweep" if "test_sweep.py" in nodeid else figure[1] if figure else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What --dist loadgroup is for; but pytest-xdist 3.8 loses its groups on pytest 9.2, whose node ids are fixed."""
    return ByFigure(config, log) if config.getvalue("dist") == "loadgroup" else None
