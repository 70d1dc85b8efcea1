"""timam.stores: what is stored equals what it stands for, and is built again exactly when an input changed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_picture
from running import cut, flip_a_bit, forked

from timam import images
from timam.data import DataError
from timam.images import IMAGENET_MEAN, IMAGENET_STD, normalize, read_image, to_pixels
from timam.stores import open_block_outputs, open_pixels, open_word_states

CAPTIONS = ["a man", "the woman in a red dress and a black hat and boots", "a", "a green coat and white shoes", "blue"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """The empty cache of each test."""
    monkeypatch.setenv("TIMAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    found = [tmp_path / "pictures" / f"{i}.bmp" for i in range(5)]  # uncompressed: as many bytes whatever they show
    for i, path in enumerate(found):
        write_picture(path, seed=i, size=(20 + i, 40 - i))  # of different sizes
    return found


def files(folder: Path) -> list[str]:
    """The stores below a cache folder: not their sums and locks, nor what a killed process left."""
    return sorted(p.parent.name for p in folder.rglob("*.npy") if not p.parent.name.startswith("."))


def pixels_of(paths: list[Path]) -> np.ndarray:
    return np.array([to_pixels(read_image(path), 24, 12) for path in paths])


def test_pixels_equal_decoding_each_picture_once(paths, monkeypatch, own_cache):
    events = []
    monkeypatch.setattr(os, "posix_fallocate", lambda _, *room: events.append(room), raising=False)
    monkeypatch.setattr(images, "read_image", lambda path: events.append(path) or read_image(path))
    pixels = open_pixels(paths, 24, 12, progress=False)
    assert (pixels.shape, pixels.dtype, pixels.flags.writeable) == ((5, 3, 24, 12), np.uint8, False)
    assert isinstance(pixels, np.memmap)
    assert torch.from_numpy(pixels[[3, 1]]).is_contiguous(memory_format=torch.channels_last)  # as `normalize` likes it
    assert np.array_equal(pixels, pixels_of(paths))
    assert np.array_equal(open_pixels(paths, 24, 12, progress=False), pixels)
    # First the file gets its room: a memory-mapped page that finds the disk full ends the process without a word.
    assert events[0] == (0, 128 + 5 * 3 * 24 * 12)
    assert sorted(events[1:]) == paths
    assert len(files(own_cache)) == 1


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pixels_normalize_to_the_last_bit(paths, memory):
    pixels = torch.from_numpy(pixels_of(paths)).contiguous(memory_format=memory)
    mean, std = (torch.tensor(c).view(3, 1, 1) * 255 for c in (IMAGENET_MEAN, IMAGENET_STD))
    found, given = normalize(pixels), pixels.float()
    assert torch.equal(normalize(given), found)
    assert torch.equal(given, pixels)  # not changed in place
    assert torch.equal(found, (pixels.float() - mean) / std)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("change", ["content", "order"])
def test_changed_input_is_decoded_again(paths, change):
    first = np.array(open_pixels(paths, 24, 12, progress=False))
    assert open_pixels(paths, 12, 24, progress=False).shape == (5, 3, 12, 24)  # of another size: another store
    if change == "order":
        paths.reverse()
    else:  # neither size nor time of modification tells
        stat = paths[1].stat()
        write_picture(paths[1], "green", "white", seed=99, size=(21, 39))
        os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert paths[1].stat().st_size == stat.st_size
    assert not np.array_equal(pixels_of(paths), first)
    assert np.array_equal(open_pixels(paths, 24, 12, progress=False), pixels_of(paths))


def test_unreadable_pictures_are_all_reported_and_nothing_is_stored(paths, own_cache):
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    paths[3].write_text("no picture")
    with pytest.raises(DataError) as caught:
        open_pixels(paths, 24, 12, progress=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [str(paths[1]), str(paths[3])]
    assert files(own_cache) == []
    paths[2].unlink()
    with pytest.raises(OSError, match=r"2\.bmp"):
        open_pixels(paths, 24, 12, progress=False)


def test_build_killed_without_a_word_leaves_nothing_that_is_taken_for_a_store(paths, own_cache, monkeypatch):
    def killed(path):
        if path == paths[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path)

    with monkeypatch.context() as patched:
        patched.setattr(images, "read_image", killed)
        process = forked(open_pixels, paths, 24, 12, False)
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert files(own_cache) == []
    assert len(list(own_cache.rglob("*.npy"))) == 1  # what was begun
    assert np.array_equal(open_pixels(paths, 24, 12, progress=False), pixels_of(paths))
    assert len(list(own_cache.rglob("*.npy"))) == 1  # and does not stay


def test_two_that_want_one_store_build_it_once(paths, monkeypatch):
    decoded = []

    def slowly(path):
        time.sleep(0.1)  # the other one comes meanwhile
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr(images, "read_image", slowly)
    with ThreadPoolExecutor() as pool:  # the lock is as good between processes
        assert np.array_equal(*pool.map(lambda _: open_pixels(paths, 24, 12, progress=False), range(2)))
    assert sorted(decoded) == paths


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lambda path, _: path.unlink()], ids=["bit", "cut", "gone"])
@pytest.mark.parametrize("name", ["store.npy", "SHA256SUMS"])
def test_damaged_store_is_named_and_made_again(paths, own_cache, tiny_model, damage, name):
    model = tiny_model()

    def opened():
        pixels = open_pixels(paths, 24, 12, progress=False)
        return np.array(pixels), np.array(open_word_states(model, CAPTIONS, progress=False).states)

    first = opened()
    for path in own_cache.rglob(name):
        damage(path, np.random.default_rng(0))
    expected = pytest.warns(UserWarning, match=r"pixels/.*(damaged|absent).*the store is built again")
    if not path.exists() and name == "SHA256SUMS":  # nothing says what it was
        expected = nullcontext()
    with expected:
        again = opened()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened()
    assert [np.array_equal(a, b) for a, b in zip(first, again, strict=True)] == [True, True]


def own_states(model, captions: list[str]) -> list[torch.Tensor]:
    """The language model's outputs for each caption alone, without padding."""
    model.eval()
    with torch.no_grad():
        return [model.text_encoder.word_states(*model.tokenize([c]))[0] for c in captions]


def test_word_states_equal_the_models_own_output_and_are_computed_once(tiny_model, monkeypatch):
    model = tiny_model().train()  # not frozen: its dropout is on
    store = open_word_states(model, CAPTIONS, batch_size=2, progress=False)
    assert model.text_encoder.language_model.training
    expected = own_states(model, CAPTIONS)
    assert len({len(e) for e in expected}) > 2  # of different lengths
    assert (store.states.dtype, store.states.shape) == (np.float16, (sum(map(len, expected)), 16))  # without padding
    chosen = np.array([3, 0, 1, 1])
    gathered, mask = store.gather(chosen)
    assert mask.equal(model.tokenize([CAPTIONS[m] for m in chosen])[1])
    assert (gathered.dtype, gathered.shape[1]) == (torch.float16, max(len(expected[m]) for m in chosen))
    for row, m in zip(gathered, chosen, strict=True):
        own, row = expected[m], row.float()
        # float16 keeps 11 bits: a relative error of 2^-11; the rest is rounding of another padding
        torch.testing.assert_close(row[: len(own)], own, rtol=2**-10, atol=1e-5)
        assert (row[len(own) :] == 0).all()
    monkeypatch.setattr(model.text_encoder, "word_states", lambda *_: pytest.fail("computed again"))
    again = open_word_states(model, CAPTIONS, batch_size=3, progress=False)
    assert np.array_equal(again.states, store.states)


@pytest.mark.parametrize("change", ["weights", "caption", "heads"])
def test_other_inputs_have_another_store(tiny_model, change):
    model, captions = tiny_model(), ["a woman" if change == "caption" else CAPTIONS[0], *CAPTIONS[1:]]
    open_word_states(model, CAPTIONS, progress=False)
    if change == "weights":
        with torch.no_grad():
            next(model.text_encoder.language_model.parameters())[5, 0] += 1
    if change == "heads":  # which the shapes of the weights do not tell
        read = model.text_encoder.language_model
        config = type(read.config).from_dict({**read.config.to_dict(), "num_attention_heads": 1})
        model.text_encoder.language_model = type(read)(config, add_pooling_layer=False).eval()
        model.text_encoder.language_model.load_state_dict(read.state_dict())
    store = open_word_states(model, captions, progress=False)
    expected = torch.cat(own_states(model, captions))
    torch.testing.assert_close(torch.from_numpy(np.array(store.states)).float(), expected, rtol=2**-10, atol=1e-5)


def test_other_frozen_blocks_have_another_store(tiny_model, paths):
    pixels, stored = open_pixels(paths, 64, 32, progress=False), []
    for seed in (0, 1):
        model = tiny_model(backbone="squeezenet1_1", seed=seed)
        model.image_encoder.freeze_blocks(2)
        stored.append(np.array(open_block_outputs(model, pixels, progress=False)))
    assert not np.array_equal(*stored)
