"""What `subspace_descent` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    bound, steps = float(data.fixed["bound"]), np.arange(len(data.fixed["inside"]))
    return [
        *(_fixed(data, "bound", bound + change * (1 - bound)) for change in (0.1, -0.1)),
        _fixed(data, "inside", data.fixed["inside"] ** 0.9),
        _fixed(data, "inside", np.where(steps > 5, 1e-3, 1.0)),  # it stops falling
        _fixed(data, "bound", np.array(0.5)),
        *(_fixed(data, "whole", data.fixed["whole"] * factor) for factor in (0.5, 0.99, 1.01, 5, np.nan)),
        _fixed(data, "off", np.array(1e-6)),
        _runs(data, "off", 1e6, "never"),
        *(_runs(data, "whole", factor, "never") for factor in (0.5, 2)),
        *(_runs(data, "whole", factor, "random") for factor in (0.01, 10)),
        *(_runs(data, "whole", factor, "svd") for factor in (1e-4, 30)),
        replace(data, runs={**data.runs, "svd": {**data.runs["svd"], "whole": data.runs["random"]["whole"]}}),
        replace(data, runs={**data.runs, "random": {**data.runs["random"], "whole": data.runs["never"]["whole"]}}),
        _runs(data, "loss", 0.3, "never"),
        _runs(data, "limits", 2, "never"),
        _runs(data, "limits", 0.5, "never"),
        _runs(data, "loss", 1 + 0.1 * np.sin(np.arange(data.spec.task.steps + 1)), "svd"),  # it rises now and then
        *(_runs(data, "share", factor, "svd") for factor in (0.5, 3)),
        *(_runs(data, "share", factor, "random") for factor in (0.8, 1.25)),
        *(_runs(data, "falls", [[1e-3], [1]], kind) for kind in ("svd", "random")),
        *(_runs(data, "falls", [[1e6], [1]], kind) for kind in ("svd", "random")),
    ]


def _fixed(data, name, values):
    return replace(data, fixed={**data.fixed, name: values})


def _runs(data, name, factor, kind):
    return replace(data, runs={**data.runs, kind: {**data.runs[kind], name: data.runs[kind][name] * np.array(factor)}})
