"""Real images: what the reader of IDX files accepts and refuses, how they are fetched, and the classifier's start."""

import gzip
import io
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm_experiments import assets
from lm_experiments.classifier import COMPRESSED, DLN, HEADS, ORIGINAL, Classifier, Network, _momentum, train
from lm_experiments.tasks.fashion_mnist import fingerprint, read_idx, read_images

PIXELS = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
LABELS = np.array([9, 0, 3, 1], dtype=np.uint8)
NAMES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def idx(array, code=8):
    return bytes((0, 0, code, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def folder_of(path, pixels=PIXELS, labels=LABELS, zipped=False):
    for name, array in zip(NAMES, (pixels, labels) * 2, strict=True):
        content = idx(array)
        (path / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("most", [None, 2, 4, 9])
def test_both_forms_are_read_in_full_and_in_part(tmp_path, zipped, most):
    images = read_images("train", folder_of(tmp_path, zipped=zipped), most)
    np.testing.assert_array_equal(images.pixels, PIXELS[:most])
    np.testing.assert_array_equal(images.labels, LABELS[:most])


GOOD = idx(PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"starts with nothing: expected an IDX file of bytes with 3 dimension"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], r"starts with 00 00 0d 03: expected an IDX file of bytes"),
        (idx(LABELS), r"starts with 00 00 08 01: expected an IDX file of bytes with 3"),
        (GOOD[:9], r"ends within its header"),
        (GOOD[:-1], r"cut short: 23 of the 24 bytes of \(4, 3, 2\)"),
        (GOOD + b"\0", r"goes on after the 24 bytes of \(4, 3, 2\)"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_files_are_refused_with_the_reason(tmp_path, content, message, zipped):
    path = tmp_path / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


ZIPPED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04", ZIPPED[:-12], ZIPPED[:10] + b"\xff" * 20], ids=["zip", "cut short", "not deflate"]
)
def test_broken_gzip_is_refused(tmp_path, content):
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"images.gz is not whole gzip .*: expected an IDX file .*get it again"):
        read_idx(tmp_path / "images.gz", 3)


def test_images_and_labels_must_belong_together(tmp_path):
    with pytest.raises(ValueError, match=r"has 4 images and .* has 3 labels: they do not belong together"):
        read_images("t10k", folder_of(tmp_path, labels=LABELS[:3]), 2)
    with pytest.raises(ValueError, match=r"has a label 10: there are 10 classes, 0 to 9"):
        read_images("t10k", folder_of(tmp_path, labels=LABELS + 1))
    with pytest.raises(ValueError, match="holds no images"):
        read_images("t10k", folder_of(tmp_path, PIXELS[:0], LABELS[:0]))


def test_a_missing_file_says_which_four_are_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither train-images-idx3-ubyte.gz nor .* the folder of the four"):
        read_images("train", tmp_path)


def test_the_fingerprint_is_that_of_the_files(tmp_path):
    before = fingerprint(folder_of(tmp_path))
    assert fingerprint(folder_of(tmp_path, labels=LABELS[::-1])) != before
    assert fingerprint(folder_of(tmp_path)) == before
    assert fingerprint(None) == ""


def test_the_fetched_images_are_fashion_mnist():
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_images(part)
        assert images.pixels.shape == (count, 28, 28)
        assert np.bincount(images.labels).tolist() == [count // 10] * 10
    with pytest.raises(ValueError, match=r"has 10000 images in t10k, not 10001: ask for fewer"):
        train(Classifier(training=128, test=10_001))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An asset of two small files whose hashes are right, and nothing installed or cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    contents = {"a.gz": b"first", "b.gz": b"second"}
    hashes = {name: assets._sha256(content) for name, content in contents.items()}
    asset = replace(assets.ASSETS["fashion-mnist"], folder=tmp_path / "installed", hashes=hashes)
    monkeypatch.setitem(assets.ASSETS, "fashion-mnist", asset)
    return asset, contents


def package(asset, contents):
    """The tar stream of a package with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f".{asset.folder / name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def fake_apt(monkeypatch, stream, lists=True, root=True):
    """apt-get and dpkg-deb that know one package; without lists, only after `apt-get update`."""
    calls = []

    def run(command, cwd=None, **options):
        calls.append(command[0] if command[0] == "dpkg-deb" else command[-1])
        if command[0] == "dpkg-deb":
            return subprocess.CompletedProcess(command, 0, stream, b"")
        if command[-1] == "update" or lists or "update" in calls:
            if cwd:
                (assets.Path(cwd) / "it.deb").write_bytes(b"")
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")

    monkeypatch.setattr(assets.subprocess, "run", run)
    monkeypatch.setattr(assets.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(assets.os, "geteuid", lambda: 0 if root else 1000)
    return calls


def test_a_package_is_downloaded_once_and_kept(small, monkeypatch):
    asset, contents = small
    calls = fake_apt(monkeypatch, package(asset, contents), lists=False)
    folder = assets.fetch("fashion-mnist")
    assert calls == [asset.package, "update", asset.package, "dpkg-deb"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    assert assets.fetch("fashion-mnist") == folder
    assert len(calls) == 4


def test_installed_files_are_taken_if_they_are_the_known_ones(small, monkeypatch):
    asset, contents = small
    asset.folder.mkdir()
    for name, content in contents.items():
        (asset.folder / name).write_bytes(content)
    calls = fake_apt(monkeypatch, package(asset, contents))
    (asset.folder / "a.gz").write_bytes(b"another version")
    assert asset.bring() == contents
    assert calls == [asset.package, "dpkg-deb"]
    (asset.folder / "a.gz").write_bytes(contents["a.gz"])
    assert asset.bring() == contents
    assert len(calls) == 2


def test_other_content_is_refused_and_nothing_is_kept(small, monkeypatch, tmp_path):
    asset, contents = small
    fake_apt(monkeypatch, package(asset, {**contents, "b.gz": b"forged"}))
    with pytest.raises(ValueError, match=r"b.gz in the Debian package dataset-fashion-mnist has sha256 .* do not use"):
        assets.fetch("fashion-mnist")
    fake_apt(monkeypatch, package(asset, {"a.gz": contents["a.gz"]}))
    with pytest.raises(ValueError, match=r"it.deb does not hold what we know .*b.gz.*: report it"):
        assets.fetch("fashion-mnist")
    assert not (tmp_path / "cache").exists()


def test_where_apt_fails_or_is_missing_the_error_says_which_files_to_give(small, monkeypatch):
    asset, contents = small
    fake_apt(monkeypatch, package(asset, contents), lists=False, root=False)
    with pytest.raises(ConnectionError, match=r"(?s)Unable to locate package; `sudo apt-get update` may.*a.gz, b.gz"):
        assets.fetch("fashion-mnist")
    monkeypatch.setattr(assets.shutil, "which", lambda tool: None)
    with pytest.raises(
        ConnectionError, match=r"(?s)there is no apt-get and no dpkg-deb here.*a.gz, b.gz .*--classifier.images"
    ):
        assets.fetch("fashion-mnist")


@pytest.fixture
def drawn(tmp_path):
    """A cell on 120 images of 6 x 6 whose classes differ by a bright pixel."""
    labels = np.arange(120, dtype=np.uint8) % 10
    pixels = np.random.default_rng(0).integers(0, 60, (120, 6, 6), dtype=np.uint8)
    pixels.reshape(120, 36)[np.arange(120), labels] = 255
    sizes = {"training": 100, "validation": 20, "test": 120, "width": 16, "surrogate": 100, "batch": 20}
    return Classifier(images=folder_of(tmp_path, pixels, labels), steps=100, every=50, **sizes)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_and_repeats(drawn, head):
    cell = replace(drawn, head=head, rate=0.05)
    first, again = train(cell), train(cell)
    assert first["accuracy"][-1] > 0.95 > 0.6 > first["accuracy"][0]
    assert first["steps"].tolist() == [0, 50, 100]
    assert first["drift"] < 1e-5
    for name in set(first) - {"seconds"}:
        np.testing.assert_array_equal(first[name], again[name])


def test_the_compressed_head_starts_on_the_negative_gradient_of_a_zero_head(drawn):
    pixels, labels = torch.randint(0, 255, (50, 36)).byte(), torch.arange(50) % 10
    heads = {head: Network(replace(drawn, head=head), pixels, labels) for head in HEADS}
    features = heads[ORIGINAL].features(pixels).detach()
    weight = torch.zeros(10, 16, requires_grad=True)
    torch.nn.functional.cross_entropy(features @ weight.T, labels).backward()
    first, core, last = heads[COMPRESSED].head
    left, _, right = torch.linalg.svd(-weight.grad, full_matrices=False)
    torch.testing.assert_close(last @ core @ first, left[:, :9] @ right[:9], atol=1e-4, rtol=0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(heads[DLN].layers, heads[COMPRESSED].layers, strict=True))
    assert [tuple(factor.shape) for factor in heads[DLN].head] == [(16, 16), (16, 16), (10, 16)]


def test_a_step_is_that_of_torch_with_momentum_and_a_rate_of_its_own_for_outer_factors(drawn):
    cell = replace(drawn, head=COMPRESSED, alpha=3.0)
    pixels, labels = torch.arange(50 * 36).reshape(50, 36).byte(), torch.arange(50) % 10
    ours, theirs = (Network(cell, pixels, labels) for _ in range(2))
    rates = theirs.parameters(cell)
    assert sorted(rates.values()) == [1.0] * 5 + [3.0] * 2
    groups = [{"params": [tensor], "lr": 0.1 * ratio} for tensor, ratio in rates.items()]
    optimizer, descend = torch.optim.SGD(groups, momentum=0.9), _momentum(ours.parameters(cell))
    for _ in range(3):
        descend(torch.nn.functional.cross_entropy(ours(pixels), labels), 0.1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(pixels), labels).backward()
        optimizer.step()
    for one, other in zip(ours.parameters(cell), rates, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_overflow_scores_zero_and_impossible_cells_are_refused(drawn):
    assert train(replace(drawn, head=DLN, rate=1e6))["validation"] == 0
    for field, value in (("head", "x"), ("rank", 10), ("depth", 1), ("every", 7), ("batch", 101), ("rate", 0)):
        with pytest.raises(ValueError, match=f"{field} = .*: take"):
            replace(drawn, **{field: value})
