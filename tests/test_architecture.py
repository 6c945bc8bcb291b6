"""Who may import whom, how long things may get, and which names are not welcome; read from the syntax trees."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lowdim", "theory", "sims", "lm_experiments", "figures")
MAY_IMPORT = {  # package: the modules of ours that it may import, as prefixes
    "lowdim": ("lowdim",),
    "theory": ("theory",),
    "sims": ("sims", "lowdim", "theory.problem"),
    "lm_experiments": ("lm_experiments", "lowdim", "sims.kernel"),
    "figures": ("figures", "theory", "sims", "lowdim", "lm_experiments"),
}
FOREIGN = {"lowdim": {"torch"}, "theory": {"numpy", "sympy", "jaxtyping"}}  # all that these packages may import
ADAPTERS = {"torch", "peft", "transformers", "safetensors"}  # all that lowdim/adapters may
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in the file."""
    found = set()
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if is_module(f"{base}.{a.name}") else base for a in node.names}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@each_source
def test_imports_point_the_right_way(path):
    package = module(path).split(".")[0]
    ours = {name for name in imports(path) if name.split(".")[0] in (*PACKAGES, "tests")}
    allowed = MAY_IMPORT[package]
    assert {n for n in ours if not any(n == a or n.startswith(f"{a}.") for a in allowed)} == set()
    foreign = {name.split(".")[0] for name in imports(path)} - {*PACKAGES, *sys.stdlib_module_names}
    assert foreign <= (ADAPTERS if "adapters" in path.parts else FOREIGN.get(package, foreign))


@each_source
def test_inside_a_package_nobody_imports_from_its_init(path):
    package = module(path).split(".")[0]
    if path.name != "__init__.py" and path.name != "__main__.py":
        assert package not in imports(path)


def test_lowdim_imports_itself_relatively_only():
    for path in (ROOT / "lowdim").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) lowdim", path.read_text(), re.MULTILINE)


def test_no_cycles():
    graph = {module(path): {name for name in imports(path) if is_module(name)} for path in SOURCES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for imported in graph.get(name, set()) - {name}:
                visit(imported, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@each_source
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 250
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@each_source
def test_unwelcome_names(path):
    welcome = re.compile(r"(^|_)(utils?|helpers?|misc|common|manager|base)(_|$)", re.IGNORECASE)
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert not [
        name
        for name in [*path.relative_to(ROOT).with_suffix("").parts, *(n.name for n in nodes)]
        if welcome.search(name)
    ]


def test_library_code_never_touches_global_generators_or_devices():
    for path in (ROOT / "lowdim").rglob("*.py"):
        assert not re.search(
            r"manual_seed\(|\.cuda\(|set_default", re.sub(r"Generator\([^)]*\)\.manual_seed\(", "", path.read_text())
        )


def test_theory_reads_and_writes_no_files():
    for path in (ROOT / "theory").rglob("*.py"):
        assert not imports(path) & {"os", "pathlib", "io", "shutil", "tempfile"}
        assert not re.search(r"\bopen\(|np\.(load|save)", path.read_text())


def test_simulation_never_sees_the_prediction():
    for path in (ROOT / "sims").rglob("*.py"):
        assert not {name for name in imports(path) if name.startswith("theory") and name != "theory.problem"}


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_tools_are_content(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_registry_host_and_no_path_of_this_machine_is_named():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    named = re.compile(r"pypi\.org|pythonhosted|conda\.anaconda|registry\.npmjs|/root/|/home/\w+/|/work/")
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix not in (".png", ".pdf") and path != Path(__file__):
            assert not named.search(path.read_text()), name


def test_figures_are_made_without_the_libraries_of_language_models():
    """./run figures installs the extra `research` alone; figures of language models read records."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))\n"
        "from importlib import import_module\n"
        "from figures.__main__ import names\n"
        "from figures.recorded import Recorded\n"
        "found = [import_module(f'figures.{name}') for name in names()]\n"
        "read = [each.data(each.Spec().quick()) for each in found if issubclass(each.Spec, Recorded)]\n"
        "assert len(read) > 9\n"
    )
    absent = ("transformers", "peft", "datasets", "accelerate", "safetensors", "gguf", "sklearn", "tokenizers")
    done = subprocess.run([sys.executable, "-c", code, *absent], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
