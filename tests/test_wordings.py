"""timam_lab.wordings: the captions that are read again, and whether a model hears "no"."""

import math
import os
from unittest.mock import Mock, patch

import pytest
import torch
from layouts import tiny_config

from timam_lab import wordings
from timam_lab.oracle import Picture
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.studies import Experiment, run_grid


def test_a_model_that_hears_a_hat_and_not_the_no_is_found_out():
    pictures = [Picture("", i, "test", {"headwear": hat}, []) for i, hat in enumerate(("cap", "none", "none", "cap"))]
    pictures[3] = Picture("", 3, "test", {}, [])  # hidden: whatever the model says of it does not count
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.1, 1.0], [0.0, 1.0]])
    hat, bare = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    assert wordings.heard("headwear", pictures, images, torch.stack([hat, bare])) == (1.0, 1.0)
    assert wordings.heard("headwear", pictures, images, torch.stack([hat, hat])) == (1.0, 0.0)
    assert all(map(math.isnan, wordings.heard("headwear", pictures[1:], images[1:], torch.stack([hat, bare]))))


def test_test_captions_are_read_again_before_the_model_goes(tmp_path):
    root = tmp_path / "people"
    spec = PedestrianSpec(train_identities=4, val_identities=2, test_identities=6, height=64, width=32)
    render_pedestrians(root, spec, 1, progress=False)
    experiment = Experiment("one", tiny_config(root))
    run = experiment.run(tmp_path)

    def killed_first(finished):
        with patch.object(os, "replace", Mock(side_effect=KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
            wordings.reread(finished)
        assert not (run.folder / "wordings.csv").exists()
        return wordings.reread(finished)

    run_grid([experiment], tmp_path, progress=False, then=killed_first)
    assert not run.last.exists()
    found = wordings.reread(run)  # as it was kept
    assert list(found["measure"]) == ["unseen_words"] * 3 + ["negation"] * 3 + ["with", "without"] * 4
    shares = found.set_index("measure").loc[list(wordings.VARIED), "value"]
    assert shares.between(0, 1).all()
    (root / "attributes.json").unlink()  # as other data
    run_grid([other := Experiment("other", tiny_config(root, "train.seed=1"))], tmp_path, progress=False)
    assert wordings.reread(other.run(tmp_path)) is None
