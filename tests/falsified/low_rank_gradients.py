"""What `low_rank_gradients` claims, made a little false."""

from dataclasses import replace

import numpy as np

from figures.low_rank_gradients import FOUR, ONE


def falsified(data) -> list:
    one, four = data.runs[ONE], data.runs[FOUR]
    ends = [np.where(np.arange(len(run.found)) == len(run.found) - 1, 0.02, run.found) for run in (one, four)]
    return [
        _run(data, ONE, slant=0.01),
        *(_run(data, FOUR, slant=factor * four.slant) for factor in (0, 1.01)),
        *(_run(data, name, limit=factor * data.runs[name].limit) for name in (ONE, FOUR) for factor in (0.999, 1.001)),
        _run(data, ONE, lemma=0.9 * one.found),
        _run(data, ONE, lemma=1e10 * one.lemma),
        *(_run(data, FOUR, lemma=factor * four.lemma) for factor in (0.99, 1.01, 10)),
        *(_run(data, name, ours=0.99 * data.runs[name].found) for name in (ONE, FOUR)),
        *(_run(data, name, ours=1e10 * data.runs[name].ours) for name in (ONE, FOUR)),
        *(_run(data, name, found=data.runs[name].found * 1.001) for name in (ONE, FOUR)),
        *(_run(data, name, found=np.nan * data.runs[name].found) for name in (ONE, FOUR)),
        *(_both(data, name, values) for name, values in zip((ONE, FOUR), ends, strict=True)),  # it does not arrive
        *(_both(data, name, 0.1 * data.runs[name].found) for name in (ONE, FOUR)),  # nothing to fall from
        *(_late(data, ranks=(factor, 1, 1)) for factor in (0.99, 1.01)),
        *(_late(data, ranks=(1, 1, factor)) for factor in (1.001, 0.999)),
        _late(data, rank=1),
        _late(data, kept=1e-12),
        replace(data, late=data.late[:-2]),  # no N' beyond n / 2 by far enough
        replace(data, late=tuple(p._replace(most=(p.most[0], p.most[1] // 3)) for p in data.late[:-1])),
    ]


def _run(data, name, **changes):
    return replace(data, runs={**data.runs, name: data.runs[name]._replace(**changes)})


def _both(data, name, values):
    """Simulation and theory alike."""
    return _run(data, name, found=values, exact=values)


def _late(data, ranks=(1, 1, 1), rank=0, kept=0.0):
    """The last N' with stable ranks times these, with a rank and a part in the null space larger by these."""
    *others, last = data.late
    found = tuple(float(factor * value) for factor, value in zip(ranks, last.ranks, strict=True))
    return replace(data, late=(*others, last._replace(ranks=found, rank=last.rank + rank, kept=last.kept + kept)))
