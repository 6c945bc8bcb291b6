"""What outsiders install, and that the other ways to install stay in step with it."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by the backend itself, without pip's build isolation, so without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build; hatchling.build.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_lowdim_and_nothing_else(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in files} == {"lowdim", f"lowdim-{PROJECT['version']}.dist-info"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lowdim").rglob("*.py")}
    assert sources | {"lowdim/py.typed"} == {name for name in files if name.startswith("lowdim/")}
    metadata = zipfile.ZipFile(wheel).read(f"lowdim-{PROJECT['version']}.dist-info/METADATA").decode()
    unconditional = re.findall(r"^Requires-Dist: (?!.*extra ==)(.*)$", metadata, re.MULTILINE)
    assert unconditional == ["torch>=2.11"]


@pytest.fixture(scope="module")
def stranger(wheel, tmp_path_factory) -> Path:
    """The Python of an empty environment with the wheel and torch alone: torch's own requirements, no NumPy."""
    return environment(wheel, tmp_path_factory.mktemp("stranger"), {"torch"})


def environment(wheel: Path, folder: Path, names: set[str]) -> Path:
    """The Python of a new environment with the wheel, these distributions and what they require."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for name in set().union(*map(_with_requirements, names)):
        installed = distribution(name)
        for top in {path.parts[0] for path in installed.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    return folder / "bin" / "python"


def _with_requirements(name: str) -> set[str]:
    """A distribution and all that it requires on this platform without extras."""
    found, todo = set(), [name]
    while todo:
        name = todo.pop()
        found.add(name)
        requirements = [Requirement(text) for text in distribution(name).requires or []]
        needed = [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
        todo += [name for name in needed if name not in found]
    return found


def run(python: Path, program: str) -> str:
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_imports_with_torch_alone(stranger):
    program = "import lowdim, sys; print('numpy' in sys.modules, 'theory' in sys.modules, lowdim.compress.__name__)"
    assert run(stranger, program).split() == ["False", "False", "compress"]
    assert (
        "No module named 'numpy'"
        in subprocess.run([stranger, "-I", "-c", "import numpy"], capture_output=True, text=True).stderr
    )


def test_adapters_without_peft_say_what_to_install_and_the_rest_works_without(stranger):
    program = "from lowdim import *; print(compress.__name__)\nimport lowdim\nlowdim.DeepLoraConfig"
    done = subprocess.run([stranger, "-I", "-c", program], capture_output=True, text=True)
    assert done.stdout == "compress\n"
    assert done.stderr.endswith("PEFT is not installed: pip install 'lowdim[peft]'\n")


def test_readme_snippet_runs_from_the_wheel_and_prints_what_the_readme_says(stranger):
    snippet, printed = re.search(
        r"```python\n(.*?)```\n+```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    ).groups()
    assert len(snippet.strip().splitlines()) <= 14
    assert run(stranger, snippet) == printed


LLAMA = """
import os, torch, warnings
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
base = LlamaForCausalLM(config)
base.load_state_dict(model.state_dict())
ids = torch.randint(50, (4, 8))
loader = [dict(input_ids=ids, labels=ids)] * 200
before = model(**loader[0]).loss.item()
"""


def snippet(heading: str) -> str:
    """The first program below a heading of the README."""
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]


@pytest.fixture(scope="module")
def tuner(wheel, tmp_path_factory) -> Path:
    """A Python that has the wheel and what its extra peft brings."""
    extra = {Requirement(requirement).name for requirement in PROJECT["optional-dependencies"]["peft"]}
    return environment(wheel, tmp_path_factory.mktemp("tuner") / "env", {"torch", *extra})


def test_fine_tuning_snippet_of_the_readme_runs_from_the_wheel_with_its_peft_extra(tuner, tmp_path):
    end = """
import lowdim.adapters
again = lowdim.adapters.load(base, "adapter")
after, loaded = (m(**loader[0]).loss.item() for m in (model, again))
print(after < 0.9 * before, abs(after - loaded) < 1e-4, type(model).__name__)
"""
    program = LLAMA + f"os.chdir({str(tmp_path)!r})\n" + snippet("Use it in your fine-tuning") + end
    assert run(tuner, program).splitlines()[-1] == "True True LlamaForCausalLM"


def test_optimizer_snippet_of_the_readme_trains_a_hugging_face_model_from_the_wheel(tuner):
    program = snippet("Train every weight through low-rank gradients")
    end = """
after = model(**loader[0]).loss.item()
print(after < 0.1 * before, sum("P0" in state or "P1" in state for state in optimizer.state.values()))
"""
    assert run(tuner, LLAMA + program + end).splitlines()[-1] == "True 14"


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *listed, pip = environment["dependencies"]
    *pypi_alone, here = pip["pip"]
    assert here == "-e ."
    conda_names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    extras = PROJECT["optional-dependencies"]
    wanted = {"python": PROJECT["requires-python"], "pip": ""}
    parts = [extras[name] for name in ("research", "peft", "lm", "notebooks", "cluster", "test")]
    for text in [*PROJECT["dependencies"], *(text for part in parts for text in part)]:
        requirement = Requirement(text)
        if requirement.name != "lowdim":
            wanted[conda_names.get(requirement.name, requirement.name)] = str(requirement.specifier)
    assert {name: spec for name, _, spec in (entry.partition(" ") for entry in [*listed, *pypi_alone])} == wanted
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_constraints_pin_every_dependency_and_name_no_host_and_no_path():
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[^,]+", str(pin.specifier)) and pin.url is None for pin in pins)
    for text in PROJECT["dependencies"] + [t for extra in PROJECT["optional-dependencies"].values() for t in extra]:
        wanted = Requirement(text)
        matching = [pin for pin in pins if pin.name.lower() == wanted.name.lower()]
        if wanted.name != "lowdim":
            assert matching, (
                f"{wanted.name} is not pinned: regenerate requirements/constraints.txt (see its first lines)"
            )
            assert all(wanted.specifier.contains(str(pin.specifier)[2:]) for pin in matching)


def test_every_dependency_states_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("\ndependencies = [") : text.index("[tool.hatch")]
    entries = re.findall(r'^  "([^"]+)",?(.*)$', section, re.MULTILINE)
    assert len(entries) > 20
    assert [name for name, comment in entries if not name.startswith("lowdim[") and "# " not in comment] == []


def test_citation_names_the_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    cited = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    assert cited == {f"arXiv:{n}" for n in ("2406.04112", "2311.05061", "2306.01154", "2403.03507", "2410.01623")}


def test_changelog_has_the_version():
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
