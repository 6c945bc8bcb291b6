"""Compute, check and draw figures: python -m figures [NAME ...|all] [--quick|--full] [--field value ...]."""

import argparse
import ast
import difflib
import inspect
import json
import pkgutil
import platform
import sys
import time
import warnings
from dataclasses import asdict
from importlib import import_module, metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

import figures
from figures.claims import Claim, Refuted, hold
from lm_experiments.assets import write_atomically
from sims.engines import cores, engine
from sims.sweep import Sweep, in_process, workers

OUT = Path(__file__).parent / "out"
RECORDS = Path(__file__).parent / "records"
NOT_FIGURES = {"__main__", "claims", "networks", "recorded", "style"}
MOST_PROCESSES = 8  # unless --workers asks for more: each imports torch, which takes about 300 MB
HELP = """usage: ./run figures [NAME ...] [--quick | --full] [--record] [--workers WHERE] [--fresh] [--field value ...]

Computes, checks, then draws figures into figures/out; without a name, all of them. A figure whose check fails is not
saved.

  --quick          the same figures from smaller problems, in seconds, into figures/out/quick
  --full           the papers' sizes, into figures/out/full; hours of CPU time for some
  --record         keep the numbers in figures/records (with --full in figures/records/full), too, where the READMEs
                   take them from
  --workers WHERE  where the cells of a figure's grid run: a number of processes (by default one for each core, at most
                   8; one with --quick), dask for a Dask cluster on this machine, tcp://HOST:PORT for the Dask scheduler
                   there, slurm for SLURM jobs, jobs for the same jobs without SLURM. Finished cells are kept in
                   figures/out/cells: after Ctrl-C the same call goes on from there
  --fresh          compute all cells anew
  --field value    change a field of one figure's Spec, into figures/out/custom; ./run figures NAME --help lists them

figures:
"""
SIZES = ("--quick", "--full")
OTHERS = ("--record", "--workers", "--fresh", "--help")


def names() -> list[str]:
    """All figures: every module of this folder but the machinery."""
    return sorted(module.name for module in pkgutil.iter_modules(figures.__path__) if module.name not in NOT_FIGURES)


def main(arguments: list[str]) -> int:
    """Make the figures that the arguments name; the number of those that failed."""
    warnings.showwarning = _warned  # type: ignore[assignment]
    options, rest = _options(arguments)
    chosen = list(takewhile(lambda argument: not argument.startswith("-"), rest))
    fields = rest[len(chosen) :]
    selected = names() if chosen in ([], ["all"]) else chosen
    for name in selected:
        _check_name(name)
    if len(chosen) != 1 and set(fields) & {"--help", "-h"}:
        print(HELP + "\n".join(f"  {name:20} {_claim(name)}" for name in names()))
        return 0
    if fields and len(selected) != 1:
        near = difflib.get_close_matches(fields[0], (*SIZES, *OTHERS), n=1)
        remedy = f"did you mean {near[0]}?" if near else "fields belong to one figure; name it, as in "
        sys.exit(f"{' '.join(fields)}: {remedy}" + ("" if near else f"./run figures {selected[0]} {' '.join(fields)}"))
    if options.record and (options.size == "quick" or fields):
        sys.exit("--record keeps the default figure's numbers, or the full one's: leave out --quick and fields")
    specs = [_spec(name, options.size, fields) for name in selected]  # all first: a typing error stops before any work
    folders = [OUT / ("custom" if fields else options.size), *[RECORDS / options.size] * options.record]
    try:
        engine(options.workers, None)
    except (ValueError, ModuleNotFoundError) as error:
        sys.exit(f"--workers {options.workers}: {error}")
    begun = time.perf_counter()
    with workers(options.workers, OUT / "cells", fresh=options.fresh) as sweep:
        made = [_made(name, spec, folders, sweep) for name, spec in zip(selected, specs, strict=True)]
    return _counted(selected, made, time.perf_counter() - begun)


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What concerns every figure, wherever it stands; and the names and fields."""
    parser = argparse.ArgumentParser("./run figures", add_help=False, allow_abbrev=False)
    sizes = parser.add_mutually_exclusive_group()
    for size in SIZES:
        sizes.add_argument(size, dest="size", action="store_const", const=size[2:], default="")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--workers", metavar="WHERE")
    options, rest = parser.parse_known_args(arguments)
    most = 1 if options.size == "quick" else MOST_PROCESSES  # starting processes takes longer than a quick cell
    options.workers = options.workers or str(min(cores(), most))
    return options, rest


def _warned(message: Warning | str, *_: Any) -> None:
    """A warning as a sentence, without the place in the code."""
    print(f"! {message}", file=sys.stderr, flush=True)


def _counted(selected: list[str], made: list[bool], seconds: float) -> int:
    failed = [name for name, is_made in zip(selected, made, strict=True) if not is_made]
    if len(selected) > 1:
        print(f"{len(selected) - len(failed)} of {len(selected)} figures made in {seconds:.0f} s")
    if failed:
        print(f"{len(failed)} of {len(selected)} figures failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def _claim(name: str) -> str:
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")  # read, not imported: --help is instant
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _check_name(name: str) -> None:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0)[0]
        sys.exit(f"no figure is called {name!r}; did you mean {near!r}? There are: {', '.join(names())}")


def _spec(name: str, size: str, fields: list[str]) -> Any:
    import tyro  # only now: --help and typing errors answer at once

    spec = import_module(f"figures.{name}").Spec()
    spec = {"quick": spec.quick, "full": spec.full}.get(size, lambda: spec)()
    return tyro.cli(type(spec), default=spec, args=fields, prog=f"./run figures {name}") if fields else spec


def _made(name: str, spec: Any, folders: list[Path], sweep: Sweep) -> bool:
    from threadpoolctl import threadpool_limits

    begun = time.perf_counter()
    try:
        with threadpool_limits(1):  # CPU times that compare, and two threads crawl on a busy machine
            claims = make(name, spec, folders[0], sweep)
    except (Refuted, ValueError, OSError, ArithmeticError) as error:
        print(f"✗ {name}: {error}", file=sys.stderr)
        return False
    for folder in folders[1:]:
        write_atomically(folder / f"{name}.json", (folders[0] / f"{name}.json").read_bytes())
    _report(name, claims)
    print(f"✓ {folders[0] / name}.png, .pdf, .json after {time.perf_counter() - begun:.0f} s\n")
    return True


def _report(name: str, claims: list[Claim]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "claim", "measured", "bound", title=f"{name}: {_claim(name)}", title_justify="left", title_style="bold"
    )
    for claim in claims:
        table.add_row(claim.text, f"{claim.value:.4g}", claim.bound)
    Console().print(table, highlight=False, markup=False)


def make(name: str, spec: Any, folder: Path, sweep: Sweep = in_process) -> list[Claim]:
    """Compute a figure, check its claims, and only then save NAME.png, NAME.pdf and NAME.json, each in one piece."""
    from figures import style

    figure = import_module(f"figures.{name}")
    has_grid = "sweep" in inspect.signature(figure.data).parameters
    data = figure.data(spec, sweep) if has_grid else figure.data(spec)
    claims = figure.check(data)
    hold(claims)
    versions = {package: metadata.version(package) for package in ("numpy", "scipy", "torch", "matplotlib")}
    record = {
        "figure": name,
        "spec": asdict(spec),
        "claims": [{"claim": claim.text, "measured": float(claim.value), "bound": claim.bound} for claim in claims],
        "versions": {"python": platform.python_version(), **versions},
    }
    drawn = figure.draw(data)
    about = json.dumps(record["spec"], default=str)
    for kind in ("png", "pdf"):
        write_atomically(folder / f"{name}.{kind}", style.rendered(drawn, kind, about))
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=2, default=str).encode())
    return claims


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped; finished figures are in figures/out, finished cells, too: the same call goes on from there")
