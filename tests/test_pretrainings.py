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
from lm_experiments.pretrainings import ARMS, PRETRAININGS, RATES, SHORTER, TUNING, chosen, shared
from lm_experiments.registry import recorded
from lm_experiments.runs import Pretrain
from lm_experiments.summary import label, summary

sizes = pytest.mark.parametrize("size", ["small", "full"])


def made_up(what: Pretrain, perplexity: float) -> records.Record:
    return records.Record(what, {"scores": [{"step": what.steps, "perplexity": perplexity}]}, {})


def rated(best: dict[str, float], size="small") -> dict[Pretrain, records.Record]:
    """All runs that choose rates, the best of each arm as said."""
    found = {}
    for arm, its in ARMS.items():
        for tried in PRETRAININGS["pretrain-rates"].cells(size):
            if all(getattr(tried, name) == value for name, value in {**_plain(), **its}.items()):
                found[tried] = made_up(tried, 5.0 if tried.lr == best[arm] else 9.0 + tried.lr)
    return found


def _plain() -> dict:
    return {name: getattr(Pretrain(), name) for name in ("optimizer", "refresh", "moments", "state", "scale")}


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
            assert cell.steps == shared(size).steps // (1 if experiment.tuned else SHORTER)
    assert RATES.keys() == ARMS.keys()
    assert {len(rates) for rates in RATES.values()} == {4}
    assert len(PRETRAININGS["pretrain-rates"].cells(size)) == 4 * len(ARMS)


@sizes
def test_every_arm_is_run_on_three_seeds_with_nothing_else_different(size):
    cells = PRETRAININGS["optimizers"].cells(size)
    assert len(cells) == 3 * len(ARMS)
    for seed in range(3):
        for arm in ARMS.values():
            assert replace(shared(size), **arm, seed=seed) in cells


@sizes
@given(best=st.fixed_dictionaries({arm: st.sampled_from(rates) for arm, rates in RATES.items()}))
def test_the_best_rate_of_its_arm_is_chosen_at_any_rank_gap_and_seed(size, best):
    found = rated(best, size)
    assert len(found) == 4 * len(ARMS)
    for name in ("optimizers", "ranks", "gaps", "gradients"):
        for cell in PRETRAININGS[name].cells(size):
            own = {field: getattr(cell, field) for field in _plain()}
            (arm,) = (arm for arm, its in ARMS.items() if {**_plain(), **its} == own)
            assert chosen(cell, found.get) == replace(cell, lr=best[arm])


@sizes
def test_gradients_are_watched_in_runs_that_are_else_those_of_the_comparison(size):
    cells = PRETRAININGS["gradients"].cells(size)
    compared = PRETRAININGS["optimizers"].cells(size)
    assert {(cell.optimizer, cell.seed) for cell in cells} == {
        (name, seed) for name in ("adamw", "galore", "fira") for seed in range(3)
    }
    for cell in cells:
        assert cell.watch
        assert 2 * cell.every == shared(size).every
        assert replace(cell, watch=False, every=shared(size).every) in compared


@sizes
def test_a_figure_reads_the_records_of_pretraining(size, tmp_path):
    best = rated({arm: rates[2] for arm, rates in RATES.items()}, size)
    for cell, record in best.items():
        records.write(cell, record.found, {}, tmp_path)
    with pytest.raises(ValueError, match=r"6 of 6 runs of 'gradients' have no record yet: python -m .* gradients"):
        recorded("gradients", size, 2, tmp_path)
    cells = [chosen(cell, best.get) for cell in PRETRAININGS["gradients"].cells(size) if cell.seed < 2]
    for cell in cells:
        records.write(cell, made_up(cell, 4.0).found, {}, tmp_path)
    assert [record.spec for record in recorded("gradients", size, 2, tmp_path)] == cells
    tries = [record.spec for record in recorded("pretrain-rates", size, 1000, tmp_path)]
    assert tries == [*PRETRAININGS["pretrain-rates"].cells(size)]


def test_a_rate_that_diverged_is_not_chosen():
    best = {arm: rates[1] for arm, rates in RATES.items()}
    found = rated(best)
    cell = PRETRAININGS["optimizers"].cells("small")[0]
    (winner,) = (tried for tried in found if tried.optimizer == "adamw" and tried.lr == best["AdamW"])
    found[winner] = replace(found[winner], found={"diverged": "step 3 of it: the loss is not finite"})
    assert chosen(cell, found.get).lr == RATES["AdamW"][0]


def test_a_missing_rate_is_named_with_the_command_that_finds_it(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["optimizers", "--results", str(tmp_path)])
    assert str(stopped.value) == "no record of lr = 0.0005 for AdamW: python -m lm_experiments pretrain-rates first"


@sizes
@pytest.mark.parametrize("name", PRETRAININGS)
def test_no_table_is_wider_than_a_terminal(name, size):
    best = rated({arm: rates[0] for arm, rates in RATES.items()}, size)
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
