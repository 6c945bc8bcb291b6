"""What a cell's numbers depend on: its fields, the sources that it runs, and the versions of NumPy and torch.

Used as the key under which sims.sweep keeps a finished cell.
"""

import ast
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WHOLE = ("theory", "sims", "lowdim")  # packages whose every source counts; of others, what the cell's module reaches
BEGUN = time.time()


def described(value: Any) -> str:
    """Every field of a cell as text: the same text, and only then, for the same numbers.

    A path to a file stands for the file's content, too. Raises ValueError for what has no such text.
    """
    if is_dataclass(value) and not isinstance(value, type):
        if not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise ValueError(f"{type(value).__name__} can change while its cell runs: make the dataclass frozen")
        parts = (f"{field.name}={described(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__module__}.{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))},)"
    if isinstance(value, Path):
        return f"{value}, sha256 {sha256(value.read_bytes()).hexdigest()}" if value.is_file() else str(value)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    raise ValueError(
        f"{value!r:.80} in a cell: take numbers, strings, paths, tuples and frozen dataclasses, which can be told apart"
    )


def check_cell(cell: Callable[..., Any]) -> None:
    """Raise ValueError unless other processes can import the cell function by its name."""
    name = getattr(cell, "__qualname__", "")
    if not name.isidentifier() or getattr(sys.modules.get(cell.__module__), name, None) is not cell:
        raise ValueError(f"{cell}: workers import a cell by its name; define it at the top of a module")
    if cell.__module__ == "__main__":
        raise ValueError(f"{name} is in the program itself: put it in a module, which workers can import")


@cache
def sources(module: str) -> str:
    """Hash of the versions and of all sources of ours that a module may run, as this process has them.

    A source that was edited after this process began is not what it runs: then the hash is of no other process.
    """
    paths = sorted(_reached(module))
    found = sha256("".join(f"{name} {metadata.version(name)}\n" for name in ("numpy", "torch")).encode())
    for path in paths:
        found.update(path.read_bytes() + b"\0")
    if any(path.stat().st_mtime > BEGUN for path in paths):
        found.update(f"edited, {BEGUN}".encode())
    return found.hexdigest()


def _reached(module: str) -> set[Path]:
    """The sources of WHOLE and of whatever the module imports of ours or of its own package, wherever in a file."""
    top = module.split(".")[0]
    file = Path(str(sys.modules[module].__file__))
    home = file.parents[module.count(".") + (file.name == "__init__.py")]
    whole = [path.relative_to(ROOT).with_suffix("") for package in WHOLE for path in (ROOT / package).rglob("*.py")]
    todo, found = [module, *(".".join(path.parts) for path in whole)], dict[str, Path]()
    while todo:
        name = todo.pop().removesuffix(".__init__")
        stem = (home if name.split(".")[0] == top else ROOT).joinpath(*name.split("."))
        path = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
        if path and name not in found:
            found[name] = path
            todo += _imports(path, name)
    return set(found.values())


def _imports(path: Path, name: str) -> Iterator[str]:
    """Absolute names of the modules that a source imports, and of the packages that they are in."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*parent, *([node.module] if node.module else [])])
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        else:
            continue
        for imported in names:
            parts = imported.split(".")
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
