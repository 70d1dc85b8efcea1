"""A gallery answers as a brute-force search does, encodes only what changed, and survives on disk."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from layouts import write_picture
from PIL import Image

from timam import search
from timam.models import TIMAM
from timam.search import Gallery
from timam_lab import galleries
from timam_lab.approximate import IndexedGallery
from timam_lab.galleries import KeptGallery, PictureFile, encode_shard, open_gallery, parquet_gallery


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    for i in range(4):
        write_picture(folder / f"{i}.png", seed=i)
    write_picture(folder / "deep/4.jpg", seed=4)
    return folder


@pytest.fixture
def model(tiny_model):
    return tiny_model()


def points(count, width=16, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1).numpy()


# -- searching --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 500])
def test_exact_search_agrees_with_brute_force_in_many_parts(k, monkeypatch):
    monkeypatch.setattr(search, "SIMILARITIES", 3600)  # 7 queries at a time
    embeddings, queries = points(500), points(300, seed=1)
    scores, rows = Gallery(embeddings, [str(i) for i in range(500)]).search(7 * queries, k)
    expected = -np.sort(-(queries.astype(np.float64) @ embeddings.T.astype(np.float64)), axis=1)[:, :k]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())  # rounding may swap neighbours, so not the rows themselves
    np.testing.assert_allclose(np.take_along_axis(queries @ embeddings.T, rows, axis=1), expected, atol=1e-6)


def test_equal_similarities_come_in_the_order_of_the_paths_and_wrong_arguments_are_refused():
    gallery = Gallery(np.repeat(points(1), 300, axis=0), [f"{i:03}" for i in range(300)])
    for k in (10, 400):  # also where k cuts them; no more answers than pictures
        assert gallery.search(points(2, seed=1), k)[1].tolist() == [list(range(min(k, 300)))] * 2
    for queries, k in ((points(1, 8), 1), (np.full((1, 16), np.nan, np.float32), 1), (points(1), 0)):
        with pytest.raises(ValueError, match=r"queries \(1, (8|16)\), k = [01]: expected finite \(Q, 16\), and k of"):
            gallery.search(queries, k)


def test_index_gives_exact_scores_knows_its_recall_and_visits_as_many_lists_as_the_wanted_one_takes():
    """Points without any groups are the hardest to index: a fixed number of lists finds few of the neighbours."""
    pytest.importorskip("faiss")
    gallery = Gallery(points(4000), [str(i) for i in range(4000)])
    queries, others = points(100, seed=5), points(100, seed=6)
    poor = IndexedGallery.of(gallery, recall=0, probes=2)
    found, exact = (searched.search(others, 10)[1] for searched in (poor, gallery))
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert poor.recall(others) == pytest.approx(expected)
    assert expected < 0.5
    assert IndexedGallery.of(gallery).recall(gallery.embeddings[:200]) > 0.9  # 0.95 of a sample of its rows
    indexed = IndexedGallery.of(gallery, queries, recall=0.9, probes=2)
    assert 2 < indexed.index.nprobe < indexed.index.nlist  # not all of them either
    assert indexed.recall(others) > 0.85  # measured on other queries than it was set with
    scores, rows = indexed.search(others, 10)
    exact = np.einsum("qd,qkd->qk", others, gallery.embeddings[rows])
    np.testing.assert_allclose(scores, exact, atol=1e-6)  # not the 8-bit approximation


def test_an_index_is_kept_beside_its_gallery_until_that_changes(model, album, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    kept, query, built = tmp_path / "kept", model.encode_texts(["a man in a red coat"]), []
    build = IndexedGallery.of.__func__
    monkeypatch.setattr(IndexedGallery, "of", classmethod(lambda *a: built.append(1) or build(*a)))

    def rows():
        return IndexedGallery.open(open_gallery(model, album, kept), kept).search(query, 9)[1].tolist()

    assert rows() == rows() == open_gallery(model, album, kept).search(query, 9)[1].tolist()
    assert len(built) == 1
    (index,) = kept.glob("*.faiss")
    index.write_bytes(b"")
    assert (len(rows()[0]), len(built)) == (5, 2)
    old = open_gallery(model, album, kept)
    os.utime(album / "2.png")  # as many pictures as before
    open_gallery(model, album, kept)
    IndexedGallery.open(old, kept)  # of a process that opened the gallery before
    assert (rows(), len(built)) == (open_gallery(model, album, kept).search(query, 9)[1].tolist(), 4)
    (index,) = kept.glob("*.faiss")  # of the former ones none is left


# -- making and keeping -----------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch):
    """Names of the pictures that a model has encoded, in order."""
    names, encode = [], TIMAM.encode_images

    def spy(self, images, *arguments, **options):
        names.extend(Path(image).name for image in images)
        return encode(self, images, *arguments, **options)

    monkeypatch.setattr(TIMAM, "encode_images", spy)
    return names


def test_update_encodes_only_what_is_new_or_changed(model, album, encoded):
    for name, seed in (("a.bmp", 10), ("b.bmp", 11)):
        write_picture(album / name, seed=seed)
    gallery = KeptGallery.update(model, album)
    assert KeptGallery.update(model, album, [gallery]).embeddings is gallery.embeddings
    assert len(encoded) == 7
    (album / "1.png").unlink()
    write_picture(album / "2.png", seed=20)
    write_picture(album / "5.png", seed=5)
    content = [(album / name).read_bytes() for name in ("a.bmp", "b.bmp")]
    for name, swapped in zip(("a.bmp", "b.bmp"), reversed(content), strict=True):  # of one size, and of one time:
        stat = os.stat(album / name)
        (album / name).write_bytes(swapped)
        os.utime(album / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    updated = KeptGallery.update(model, album, [gallery])
    assert encoded[7:] == ["2.png", "5.png", "a.bmp", "b.bmp"]
    assert updated.paths == ["0.png", "2.png", "3.png", "5.png", "a.bmp", "b.bmp", "deep/4.jpg"]
    np.testing.assert_allclose(updated.embeddings, KeptGallery.update(model, album).embeddings, atol=1e-6)
    with torch.no_grad():
        model.image_encoder.projection.weight.mul_(1.1)
    encoded.clear()
    KeptGallery.update(model, album, [updated])
    assert len(encoded) == 7  # another model


@pytest.mark.parametrize("build", [Gallery.build, KeptGallery.update])
def test_build_encodes_all_pictures_also_in_linked_folders_and_names_unreadable_ones(model, album, tmp_path, build):
    (album / "broken.jpg").write_bytes(b"no picture")
    (album / "dangling.png").symlink_to(album / "nowhere.png")
    for name in ("phone.HEIC", "deep/2.heic", "._phone.jpg"):  # the last one is a file of macOS
        (album / name).touch()
    (tmp_path / "other").mkdir()
    for name, form in (("5.TIFF", "TIFF"), ("6.jfif", "JPEG")):
        Image.open(album / "0.png").save(tmp_path / "other" / name, form)
    for name in ("linked", "twice"):
        (album / name).symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(album)  # a circle
    gallery = build(model, album)
    assert gallery.paths[:5] == ["0.png", "1.png", "2.png", "3.png", "deep/4.jpg"]
    assert gallery.paths[5:] == [f"{name}/{file}" for name in ("linked", "twice") for file in ("5.TIFF", "6.jfif")]
    expected = F.normalize(model.encode_images([album / p for p in gallery.paths]), dim=1)
    torch.testing.assert_close(torch.from_numpy(gallery.embeddings), expected)
    broken, foreign = sorted(gallery.problems, key=lambda line: ".heic" in line)
    assert "broken.jpg" in broken
    assert ".heic pictures (2) are not read" in foreign
    if build == KeptGallery.update:
        assert build(model, album, [gallery]).problems == gallery.problems  # said again, not forgotten


def test_a_picture_that_vanishes_is_passed_over_and_named(model, album, monkeypatch):
    monkeypatch.setattr(galleries, "picture_files", lambda _: ["0.png", "gone.png"])
    gallery = KeptGallery.update(model, album)
    assert gallery.paths == ["0.png"]
    assert gallery.problems == [f"{album}/gone.png: No such file or directory"]
    assert "gone.png" in repr(gallery)
    assert "array(" not in repr(gallery)


@pytest.mark.parametrize("build", [Gallery.build, KeptGallery.update])
def test_folder_without_readable_pictures_is_an_error(model, tmp_path, build):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            build(model, folder)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(FileNotFoundError, match=r"no readable pictures[\s\S]*a\.jpg: not a readable picture"):
        build(model, tmp_path)


@pytest.mark.parametrize("name", ["embeddings.npy", "pictures.parquet", "gallery.json"])
def test_damaged_gallery_is_refused_and_open_gallery_makes_it_anew(name, model, album, tmp_path, encoded):
    kept = tmp_path / "kept"
    gallery = open_gallery(model, album, kept)
    (kept / name).write_bytes((kept / name).read_bytes()[:20])
    with pytest.raises(ValueError, match="kept"):
        KeptGallery.load(kept)
    open_gallery(model, album, kept)
    assert len(encoded) == 10
    np.testing.assert_array_equal(KeptGallery.load(kept).embeddings, gallery.embeddings)


@pytest.mark.parametrize(
    "rows",
    [
        [{"file": "a.png", "embedding": [1.0, 0.0]}],
        [{"path": "a.png", "embedding": [1.0, 0.0]}, {"path": "b.png", "embedding": [1.0]}],
        [{"path": "a.png", "embedding": [float("nan"), 0.0]}],
        [{"path": "a.png", "embedding": 1.0}],
        [{"path": None, "embedding": [1.0]}],
    ],
)
def test_a_parquet_of_another_form_is_named(rows, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "album.parquet")
    with pytest.raises(ValueError, match=r"album.parquet: "):
        parquet_gallery(tmp_path / "album.parquet")


def test_open_gallery_encodes_once_and_follows_the_folder(model, album, tmp_path, encoded):
    kept, latin = tmp_path / "kept", os.fsdecode(b"caf\xe9.png")
    os.rename(album / "3.png", album / latin)  # a name that is not UTF-8
    first, second = (open_gallery(model, album, kept) for _ in range(2))
    assert (len(encoded), isinstance(second.embeddings, np.memmap)) == (5, True)  # unchanged, it stays on disk
    np.testing.assert_array_equal(second.embeddings, first.embeddings)
    (album / "0.png").unlink()
    left = ["1.png", "2.png", latin, "deep/4.jpg"]
    assert open_gallery(model, album, kept).paths == KeptGallery.load(kept).paths == left
    shutil.copytree(album, tmp_path / "copy")
    moved = open_gallery(model, tmp_path / "copy", kept)
    assert (moved.folder, len(encoded)) == ((tmp_path / "copy").resolve(), 9)


@pytest.mark.parametrize("shard", [2, 1024])
def test_a_full_disk_leaves_an_answer_and_a_line(model, album, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(galleries, "SHARD", shard)
    monkeypatch.setattr(KeptGallery, "save", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    gallery = open_gallery(model, album, tmp_path / "kept")
    assert (len(gallery), len(gallery.problems)) == (5, 1)
    assert "kept: not kept, to be encoded again the next time ([Errno 28]" in gallery.problems[0]


def test_encoding_that_was_killed_goes_on_from_its_shards(model, album, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(galleries, "SHARD", 2)
    whole = KeptGallery.update(model, album)
    encoded.clear()
    save = KeptGallery.save

    def killed(self, folder):
        if len(encoded) == 4:  # before the second shard is written
            raise KeyboardInterrupt
        save(self, folder)

    monkeypatch.setattr(KeptGallery, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        open_gallery(model, album, tmp_path / "kept")
    monkeypatch.setattr(KeptGallery, "save", save)
    write_picture(album / "00.png", seed=9)  # every later picture has another place now
    resumed = open_gallery(model, album, tmp_path / "kept")
    assert encoded == ["0.png", "1.png", "2.png", "3.png", "00.png", "2.png", "3.png", "4.jpg"]
    np.testing.assert_allclose(np.delete(resumed.embeddings, 1, axis=0), whole.embeddings, atol=1e-6)
    assert not (tmp_path / "kept.shards").exists()


def test_what_two_encode_at_once_is_encoded_once(model, album, tmp_path, encoded):
    part, shards, kept = [PictureFile.of(album, f"{i}.png") for i in range(4)], tmp_path / "shards", tmp_path / "kept"
    for expected, call, *arguments in (
        (4, encode_shard, model, album, part, shards),  # as Ray's second try of a task
        (5, open_gallery, model, album, kept),
    ):
        with ThreadPoolExecutor() as pool:
            for _ in range(2):
                pool.submit(call, *arguments)
        assert len(encoded) == expected
        encoded.clear()
    (shard,) = shards.glob("[!.]*")
    assert (len(KeptGallery.load(shard)), len(KeptGallery.load(kept))) == (4, 5)
