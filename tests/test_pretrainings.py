"""Named pre-training runs: what is compared with what, and with which learning rates."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lm_experiments import records
from lm_experiments.__main__ import main
from lm_experiments.experiments import EXPERIMENTS
from lm_experiments.pretrainings import (
    ARMS,
    INSTRUCTED,
    PRETRAININGS,
    RATES,
    SCRATCH,
    SHORTER,
    TUNING,
    Comparison,
    chosen,
    shared,
)
from lm_experiments.registry import recorded
from lm_experiments.runs import Pretrain
from lm_experiments.summary import label, summary

sizes = pytest.mark.parametrize("size", ["small", "full"])


def made_up(what: Pretrain, perplexity: float) -> records.Record:
    return records.Record(what, {"scores": [{"step": what.steps, "perplexity": perplexity}]}, {})


BOTH = (SCRATCH, INSTRUCTED)


def among(name: str) -> Comparison:
    """What the runs of an experiment are compared with."""
    return INSTRUCTED if name.startswith("instruct") else SCRATCH


def rated(best: dict[str, int], size="small") -> dict[Pretrain, records.Record]:
    """All runs that choose rates, the best of each arm at this place among those tried, counted round."""
    found = {}
    for comparison in BOTH:
        for arm, its in comparison.arms.items():
            for tried in PRETRAININGS[comparison.name].cells(size):
                if all(getattr(tried, name) == value for name, value in {**_plain(), **its}.items()):
                    found[tried] = made_up(tried, 5.0 if tried.lr == at(comparison, arm, best) else 9.0 + tried.lr)
    return found


def at(comparison: Comparison, arm: str, best: dict[str, int]) -> float:
    return comparison.rates[arm][best.get(arm, 0) % len(comparison.rates[arm])]


def _plain() -> dict:
    return {name: getattr(Pretrain(), name) for name in ("optimizer", "refresh", "moments", "state", "scale", "share")}


@sizes
def test_all_runs_differ_and_have_names_of_their_own(size):
    everything = [cell for experiment in PRETRAININGS.values() for cell in experiment.cells(size)]
    assert len({cell.key for cell in everything}) == len(set(everything)) == len(everything)
    assert not PRETRAININGS.keys() & EXPERIMENTS.keys()


@sizes
def test_rates_are_chosen_on_a_seed_of_their_own_on_as_many_tries_for_each_arm(size):
    for name, experiment in PRETRAININGS.items():
        for cell in experiment.cells(size):
            assert (cell.seed == TUNING) == (not experiment.tuned), name
            assert cell.steps == among(name).runs[size].steps // (1 if experiment.tuned else SHORTER)
    for comparison in BOTH:
        assert comparison.rates.keys() == comparison.arms.keys()
        (tries,) = {len(set(rates)) for rates in comparison.rates.values()}
        assert len(PRETRAININGS[comparison.name].cells(size)) == tries * len(comparison.arms)


@sizes
@pytest.mark.parametrize("name", ["optimizers", "instruct"])
def test_every_arm_is_run_on_three_seeds_with_nothing_else_different(size, name):
    cells, comparison = PRETRAININGS[name].cells(size), among(name)
    assert len(cells) == 3 * len(comparison.arms)
    for seed in range(3):
        for arm in comparison.arms.values():
            assert replace(comparison.runs[size], **arm, seed=seed) in [replace(cell, watch=False) for cell in cells]


@sizes
@pytest.mark.parametrize(("name", "field", "values"), [("ranks", "rank", 4), ("gaps", "gap", 4)])
def test_a_rank_and_a_gap_are_swept_on_the_seeds_of_the_default(size, name, field, values):
    """All of the first seed come first: a part of the runs is a sweep, too."""
    cells, default = PRETRAININGS[name].cells(size), PRETRAININGS["optimizers"].cells(size)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    swept = {getattr(cell, field) for cell in cells}
    assert len(swept) == values
    assert min(swept) < getattr(shared(size), field) < max(swept)
    plain = {replace(cell, **{field: getattr(shared(size), field)}) for cell in cells}
    assert len(cells) == values * len(plain)
    assert plain <= {replace(cell, watch=False) for cell in default}


@sizes
@given(best=st.fixed_dictionaries({arm: st.integers(0, 11) for arm in {**ARMS, **INSTRUCTED.arms}}))
def test_the_best_rate_of_its_arm_is_chosen_at_any_rank_gap_and_seed(size, best):
    found = rated(best, size)
    assert len(found) == sum(len(PRETRAININGS[comparison.name].cells(size)) for comparison in BOTH)
    for name in ("optimizers", "ranks", "gaps", "instruct"):
        for cell in PRETRAININGS[name].cells(size):
            own = {field: getattr(cell, field) for field in _plain()}
            (arm,) = (arm for arm, its in among(name).arms.items() if {**_plain(), **its} == own)
            assert chosen(cell, found.get) == replace(cell, lr=at(among(name), arm, best))


@sizes
def test_gradients_are_watched_in_arms_of_three_optimizers(size):
    watched = [cell for cell in PRETRAININGS["optimizers"].cells(size) if cell.watch]
    assert len(watched) == 9
    for cell in watched:
        assert cell == replace(shared(size), optimizer=cell.optimizer, watch=True, seed=cell.seed)
    assert {cell.optimizer for cell in watched} == {"adamw", "galore", "fira"}


@sizes
def test_a_figure_reads_the_records_of_pretraining(size, tmp_path):
    best = rated(dict.fromkeys({**ARMS, **INSTRUCTED.arms}, 2), size)
    for cell, record in best.items():
        records.write(cell, record.found, {}, tmp_path)
    with pytest.raises(ValueError, match=r"20 of 20 runs of 'optimizers' have no record yet: python -m .* optimizers"):
        recorded("optimizers", size, 2, tmp_path)
    cells = [chosen(cell, best.get) for cell in PRETRAININGS["optimizers"].cells(size) if cell.seed < 2]
    for cell in cells:
        records.write(cell, made_up(cell, 4.0).found, {}, tmp_path)
    assert [record.spec for record in recorded("optimizers", size, 2, tmp_path)] == cells
    tries = [record.spec for record in recorded("pretrain-rates", size, 1000, tmp_path)]
    assert tries == [*PRETRAININGS["pretrain-rates"].cells(size)]


@pytest.mark.parametrize("comparison", BOTH, ids=lambda comparison: comparison.name)
def test_arms_whose_best_rate_is_the_last_one_tried_are_named(comparison):
    arms = [*comparison.arms]
    inside = rated(dict.fromkeys(arms, 1))
    assert comparison.at_edge("small", inside.get) == ()
    for place in (0, -1):
        one = rated({arm: place if arm == arms[1] else 1 for arm in arms})
        assert comparison.at_edge("small", one.get) == (arms[1],)


def test_a_rate_is_tried_on_both_sides_of_the_papers():
    """Zhao et al.: 1e-2 with scale 0.25 for GaLore, Fira and APOLLO; AdamW from 5e-4 to 1e-3 and above."""
    for arm, rates in RATES.items():
        usual = 1e-3 if arm in ("AdamW", "LoRA", "low rank") else 1e-2
        beyond = 1 if arm in ("Fira", "APOLLO") else 4  # their updates are longer
        assert min(rates) < usual < max(rates) / beyond


def test_a_rate_that_diverged_is_not_chosen():
    found = rated(dict.fromkeys({**ARMS, **INSTRUCTED.arms}, 1))
    cell = PRETRAININGS["optimizers"].cells("small")[0]
    (winner,) = (tried for tried in SCRATCH.tries("small", "AdamW") if tried.lr == RATES["AdamW"][1])
    found[winner] = replace(found[winner], found={"diverged": "step 3 of it: the loss is not finite"})
    assert chosen(cell, found.get).lr == RATES["AdamW"][0]


@pytest.mark.parametrize(("name", "lr"), [("optimizers", 0.0005), ("instruct", 3e-5)])
def test_a_missing_rate_is_named_with_the_command_that_finds_it(tmp_path, name, lr):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--results", str(tmp_path)])
    command = f"python -m lm_experiments {among(name).name} first"
    assert str(stopped.value) == f"no record of lr = {lr:g} for AdamW: {command}"
    with pytest.raises(SystemExit, match=f"{among(name).name} --size full first$"):
        main([name, "--size", "full", "--results", str(tmp_path)])


@sizes
@pytest.mark.parametrize("name", PRETRAININGS)
def test_no_table_is_wider_than_a_terminal(name, size):
    best = rated(dict.fromkeys({**ARMS, **INSTRUCTED.arms}, 0), size)
    cells = PRETRAININGS[name].cells(size)
    cells = [chosen(cell, best.get) for cell in cells] if PRETRAININGS[name].tuned else list(cells)
    page = io.StringIO()
    Console(file=page, width=80).print(summary([made_up(cell, 123.4567) for cell in cells]))
    lines = page.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "…" not in page.getvalue()
    rows = [line for line in lines if "123.4567" in line]
    assert len(rows) == len({replace(cell, seed=0) for cell in cells}) == len(set(rows))
    assert all(len(f"✓ 100 of 100: {label(cell)}") <= 64 for cell in cells)
