"""One thread for each of two processes, and hypothesis as in CI: the same examples every time.

HYPOTHESIS_PROFILE=draft is quick and does not shrink what fails; thorough looks for a long time."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy and torch are imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from hypothesis import Phase, settings

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile(
    "draft", derandomize=True, deadline=None, max_examples=15, phases=(Phase.explicit, Phase.generate)
)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
