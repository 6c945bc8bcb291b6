"""READMEs tell the truth: links, tree, commands, and every number that a figure measured."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from figures.__main__ import names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
THEORY = (ROOT / "theory" / "README.md").read_text()
SOURCES = [path for package in ("theory", "sims", "lowdim", "figures") for path in (ROOT / package).rglob("*.py")]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose first heading is `first`."""
    lines = text.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


CLAIMS = rows(THEORY, "claim")


def numbers(text: str) -> list[str]:
    """Decimal and scientific numbers; whole ones count things and are left out."""
    without_formulas = re.sub(r"\$[^$]*\$|\(paper[^)]*\)", "", text)  # nor are the papers' numbers ours
    return re.findall(r"(?<![\w.])\d+(?:\.\d+)?e-?\d+|(?<![\w.])\d+\.\d+", without_formulas)


def measured(figure: str) -> list[float]:
    """By the figure at its default size, and at the paper's where that is on record."""
    folders = [ROOT / "figures" / "records", ROOT / "figures" / "records" / "full"]
    records = [folder / f"{figure}.json" for folder in folders]
    return [c["measured"] for path in records if path.exists() for c in json.loads(path.read_text())["claims"]]


def is_rounded(number: str, value: float) -> bool:
    """Whether `number`, with the digits that it gives, is the value."""
    mantissa, _, exponent = number.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(number) - abs(value)) <= 0.5001 * unit  # minus signs are not read


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row[0])
def test_each_claim_has_its_function_test_figure_and_number(row):
    _, _, function, test, figure, ours, _ = row
    module, _, name = function.strip("`").rpartition(".")
    assert callable(getattr(import_module(module), name))
    path, _, law = test.strip("`").partition("::")
    assert law in {
        node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
    }
    if figure != "-":
        assert figure.strip("`") in names()
        bounds = (ROOT / path).read_text() if path != "tests/test_figures.py" else ""
        for number in numbers(ours):  # measured by the figure, or a bound that a test of its own holds
            assert any(is_rounded(number, value) for value in measured(figure.strip("`"))) or number in bounds, number
    else:  # the bound that the test holds
        assert all(number in (ROOT / path).read_text() for number in numbers(ours))


def test_every_statement_of_theory_is_in_the_claims_table():
    stated = set()
    silent = {"__init__", "problem", "two_sides"}  # nothing is claimed there
    for module in {path.stem for path in (ROOT / "theory").glob("*.py")} - silent:
        tree = ast.parse((ROOT / "theory" / f"{module}.py").read_text())
        stated |= {
            f"theory.{module}.{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"
        }
    assert stated <= {row[2].strip("`") for row in CLAIMS}


def test_papers_cited_in_code_are_in_the_claims_table_and_the_other_way_round():
    cited = {paper for path in SOURCES for paper in re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text())}
    listed = {paper for row in CLAIMS for paper in re.findall(r"arXiv (\d{4}\.\d{5})", row[1])}
    algorithms = {"0909.4061", "1412.6980", "1511.04561", "2110.02861"}  # subspaces, Adam, 8-bit codes: not our claims
    assert cited - algorithms == listed


@pytest.mark.parametrize("row", rows(README, "figure"), ids=lambda row: row[0])
def test_numbers_in_the_table_of_figures_were_measured(row):
    figure = re.search(r"`(\w+)`", row[0]).group(1)
    assert row[3] == f"`./run figures {figure}`"
    assert numbers(row[2])
    for number in numbers(row[2]):
        assert any(is_rounded(number, value) for value in measured(figure)), number


def test_errors_on_movielens_are_given_to_the_right_methods():
    claims = json.loads((ROOT / "figures" / "records" / "movielens.json").read_text())["claims"]
    row = next(row for row in rows(README, "figure") if "movielens" in row[0])
    for name, number in re.findall(r"(compressed|original|ALS, tuned penalty) (\d\.\d+)", row[2]):
        value = next(claim["measured"] for claim in claims if claim["claim"].startswith(f"{name}: test RMSE"))
        assert is_rounded(number, value), name


def test_every_figure_is_in_the_table():
    assert sorted(re.search(r"`(\w+)`", row[0]).group(1) for row in rows(README, "figure")) == names()


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "theory" / "README.md"], ids=lambda path: str(path.parent.name)
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue  # tests have no network
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_tree_names_what_is_there():
    tree = re.search(r"## The tree\n+```\n(.*?)```", README, re.S).group(1)
    for line in tree.splitlines():
        room, _, text = line.partition(" ")
        assert (ROOT / room).exists(), room
        for file in re.findall(r"[\w/]+\.(?:py|md)", text):
            assert (ROOT / room / file).is_file(), f"{room}{file}"
    assert {path.name for path in (ROOT / "theory").glob("*.py")} - {"__init__.py"} <= set(re.findall(r"\w+\.py", tree))
    assert {path.name for path in (ROOT / "sims").glob("*.py")} - {"__init__.py"} <= set(re.findall(r"\w+\.py", tree))


def test_commands_of_the_readme_exist():
    shown = (ROOT / "run").read_text()
    for command in set(re.findall(r"\./run (?:--no-venv )?([a-z]+)", README)):
        assert f'"{command}": (' in shown, command


def test_symbols_of_the_table_are_in_the_code():
    code = "\n".join(path.read_text() for path in SOURCES)
    for row in rows(THEORY, "symbol"):
        for name in re.findall(r"`([a-z_]+)", row[1]):
            assert re.search(rf"\b{name}\b", code), name


def test_simulator_snippet_prints_what_the_readme_says(capsys):
    """The first snippet is run from the wheel, in test_packaging.py; this one needs the clone."""
    _, (program, printed) = re.findall(r"```python\n((?:(?!```).)*)```\n+```text\n(.*?)```", README, re.S)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed
