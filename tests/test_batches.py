"""timam.data.batches: order, captions and length of an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from timam.config import DataConfig
from timam.data import Split
from timam.data.batches import epoch_batches, epoch_order, steps_per_epoch


def make_split(images_of_identity: list[int]) -> Split:
    """A split with the given number of pictures per identity; the pictures have 2, 1, 3, 2, 1, ... captions."""
    labels = np.repeat(np.arange(len(images_of_identity)), images_of_identity)
    of_caption = np.repeat(np.arange(len(labels)), np.resize([2, 1, 3], len(labels)))
    captions, paths = [f"caption {i}" for i in range(len(of_caption))], [Path(f"{i}.png") for i in range(len(labels))]
    return Split("train", paths, labels, captions, of_caption, 1000 + np.arange(len(images_of_identity)))


def shown(batch) -> list[int]:
    """The indices of its pictures."""
    return batch.pixels[:, 0, 0, 0].tolist()


def run_epoch(split: Split, batch_size: int, images_per_identity: int = 0, seed: int = 0, epoch: int = 1):
    """The batches of an epoch; pictures show their own index."""
    pixels = np.arange(len(split.image_paths), dtype=np.uint8)[:, None, None, None].repeat(3, axis=1)
    config = DataConfig(batch_size=batch_size, images_per_identity=images_per_identity)
    return list(epoch_batches(split, pixels, config, seed, epoch))


RAGGED = [1, 4, 2, 7, 3, 1]  # 18 pictures of 6 identities


@pytest.mark.parametrize("k", [0, 1, 3, 9])
def test_order_visits_every_picture_once_in_groups_of_an_identity(k):
    """An identity of n pictures makes n // K groups of K and one of the rest, read off runs of equal labels."""
    labels = make_split(RAGGED).image_labels
    for seed in range(10):
        order = epoch_order(labels, k, np.random.default_rng(seed))
        assert sorted(order.tolist()) == list(range(18))
        if k == 0:
            continue
        ends = np.flatnonzero(np.diff(labels[order], append=-1)) + 1
        groups: Counter = Counter()
        for run in np.split(labels[order], ends[:-1]):  # adjoining groups of an identity make one run
            groups[int(run[0]), k] += len(run) // k
            groups[int(run[0]), len(run) % k] += len(run) % k > 0
        assert +groups == Counter((i, s) for i, n in enumerate(RAGGED) for s in [k] * (n // k) + [n % k] * (n % k > 0))


def test_groups_of_an_identity_are_apart_and_change_their_members():
    """An identity of 6 pictures makes 3 groups of 2, in places of their own: no run of 6 in every epoch."""
    labels = make_split([6, 6]).image_labels
    orders = (labels[epoch_order(labels, 2, np.random.default_rng(seed))] for seed in range(20))
    assert any(int((np.diff(order) != 0).sum()) > 1 for order in orders)
    batches = [batch for epoch in range(20) for batch in run_epoch(make_split([4] * 4), 2, 2, epoch=epoch)]
    assert len({frozenset(shown(batch)) for batch in batches}) == 4 * 6  # every pair of an identity's four pictures


@pytest.mark.parametrize("k", [0, 4])
def test_labels_and_captions_are_those_of_the_pictures_and_every_caption_is_drawn_in_time(k):
    split, drawn = make_split(RAGGED), set()
    for epoch in range(60):
        for batch in run_epoch(split, batch_size=4, images_per_identity=k, epoch=epoch):
            assert (batch.pixels.dtype, batch.identity_labels.dtype) == (torch.uint8, torch.int64)
            assert batch.identity_labels.tolist() == split.image_labels[shown(batch)].tolist()
            assert split.caption_image[batch.captions].tolist() == shown(batch)
            drawn |= set(batch.captions.tolist())
    assert drawn == set(range(len(split.captions)))  # missed with probability below 1e-7: (1 - 16/18 / 3)^60 * 36


@pytest.mark.parametrize("k", [0, 2])
def test_epoch_depends_on_seed_and_epoch_only(k):
    split = make_split(RAGGED)

    def trace(seed: int, epoch: int) -> list:
        np.random.seed(epoch + 7)  # noqa: NPY002 - the global generators must not matter
        torch.manual_seed(epoch + 7)
        return [(batch.captions.tolist(), shown(batch)) for batch in run_epoch(split, 4, k, seed, epoch)]

    assert trace(0, 1) == trace(0, 1)
    traces = [trace(seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert all(a != b for i, a in enumerate(traces) for b in traces[:i])


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"), [(18, 4, [4] * 4), (18, 9, [9, 9]), (18, 19, [18]), (1, 4, [1])]
)
def test_last_batch_is_dropped_unless_it_is_the_only_one(images, batch_size, sizes):
    batches = run_epoch(make_split([images]), batch_size)
    assert [len(b.captions) for b in batches] == sizes
    assert steps_per_epoch(images, batch_size) == len(sizes)  # the announced length is what comes
    assert len({picture for batch in batches for picture in shown(batch)}) == sum(sizes)
