"""What `classifier_head` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data):
    return [
        *(_with(data, head, "accuracy", run["accuracy"] - 0.1) for head, run in data.runs.items()),
        *(_with(data, head, "accuracy", np.nan * run["accuracy"]) for head, run in data.runs.items()),
        _with(data, "+ DLN", "accuracy", data.runs["original"]["accuracy"] + 0.05),  # a gain that would be seen
        _with(data, "+ C-DLN", "accuracy", data.runs["+ DLN"]["accuracy"] - 0.05),
        _with(data, "+ C-DLN", "parameters", data.runs["+ C-DLN"]["parameters"] + 200),
        _with(data, "+ DLN", "parameters", data.runs["+ DLN"]["parameters"] * 9 // 10),
        *(_with(data, head, "drift", run["drift"] + 1e-3) for head, run in data.runs.items()),
        _with(data, "+ DLN", "movement", np.sqrt(data.runs["+ DLN"]["movement"])),  # less concentrated
    ]


def _with(data, head, name, values):
    return replace(data, runs={**data.runs, head: {**data.runs[head], name: values}})
