"""Notebooks are thin, carry no outputs, and run with the quick Spec."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == [
        "1_invariant_subspace",
        "2_compression",
        "3_what_is_learned_when",
        "4_lazy_to_rich",
        "5_few_shot",
    ]


@each_notebook
def test_notebook_is_thin_and_carries_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    lines = [line for line in code(notebook).splitlines() if line.strip()]
    assert len(lines) <= 20
    assert not any(line.lstrip().startswith(("def ", "class ")) for line in lines)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert path.stat().st_size < 20_000
    assert str(path.home()) not in json.dumps(notebook)


@each_notebook
def test_notebook_runs_with_the_quick_spec(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert "Spec()" in code(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace("Spec()", "Spec().quick()") if cell.cell_type == "code" else cell.source
    config = Config()
    config.KernelManager.transport = "ipc"  # tcp would warn that it is not encrypted
    monkeypatch.chdir(tmp_path)  # where the sockets lie
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", config=config)
    client.execute()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) >= 1
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    share = re.search(r"share of the two: (\S+)", said)
    assert (share is not None) == (path.stem == "5_few_shot")
    assert share is None or float(share[1]) > 0.9  # "nearly all of what it learns"
