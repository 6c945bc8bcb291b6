"""The figure `factorization`, made a little false."""

from dataclasses import replace


def falsified(data) -> list:
    """Each must be refused."""

    def plain(column, change):
        rows = data.plain.copy()
        rows[:, column] = change(rows[:, column])
        return replace(data, plain=rows)

    return [
        replace(data, predicted=1.01 * data.predicted),
        replace(data, predicted=data.predicted[0] + 0 * data.predicted),  # the paper's bound instead of our equality
        plain(1, lambda outside: 1.01 * outside),
        plain(2, lambda tail: tail[0] + 0 * tail),
        plain(3, lambda deviation: deviation + 1e-9),
        replace(data, inside=data.inside + 1e-9),
        replace(data, error=data.error * [1.0, 1.01]),
        replace(data, error=data.error * [1.05, 1.05]),
        replace(data, error=data.error * [1.0, 3.0]),
        replace(data, components=data.components * [[[1.0], [1.001]]]),
        replace(data, steps=2 * data.steps),
        replace(data, steps=data.steps / 2),
        replace(data, spec=replace(data.spec, problem=replace(data.spec.problem, spectrum=(1.0,) * 20))),
    ]
