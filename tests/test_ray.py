"""Galleries and studies on a Ray cluster of two machines, one of which is lost in the middle."""

import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import build_tiny
from layouts import tiny_config, write_picture
from running import wait_until

from timam.search import Gallery
from timam.training import fit
from timam_lab import galleries, studies
from timam_lab.galleries import KeptGallery, build_in_shards, encode_on_ray


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(galleries.__file__).parents[1]))
        patch.setenv("RAY_worker_niceness", "0")  # else any other process starves them
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
        try:
            ray.init(address=started.address, log_to_driver=False)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@pytest.fixture
def losing_a_node(cluster):
    """losing_a_node(when) adds a node, and kills it once `when()` is true. Returns a list, empty until then."""
    killers = []

    def start(when):
        node, seen = cluster.add_node(num_cpus=1, object_store_memory=80_000_000), []
        cluster.wait_for_nodes()

        def kill():
            wait_until(when)
            cluster.remove_node(node, allow_graceful=False)
            seen.append(True)

        killers.append(threading.Thread(target=kill))
        killers[-1].start()
        return seen

    yield start
    for killer in killers:
        killer.join()


@pytest.mark.slow
def test_a_lost_run_is_resumed_elsewhere_and_every_run_ends_up_in_one_folder(losing_a_node, people, tmp_path):
    # Before the other test: both nodes are cold. A node whose worker has imported torch finishes all runs alone.
    variants = {"full": "", "alone": "loss.adversarial_weight=0"}
    runs, experiments = tmp_path / "runs", studies.grid(tiny_config(people, "train.epochs=16"), variants, range(2))
    killed = losing_a_node(lambda: len(list(runs.glob("*/checkpoints/last"))) >= 2)  # both are in the middle of a run
    studies.run_grid(experiments, runs, engine="ray", progress=False)
    wait_until(lambda: killed)
    assert [len(h.read_text().splitlines()) - 1 for h in runs.glob("*/history.csv")] == [16] * 4
    frame = studies.results(experiments, runs)
    assert len(frame) == 4
    plain = fit(experiments[0].config, tmp_path / "undisturbed", progress=False)
    assert np.isclose(frame.loc[0, "text_to_image_mAP"], plain["text_to_image"]["mAP"])


@pytest.mark.slow
def test_every_picture_is_encoded_and_no_finished_shard_twice(losing_a_node, tmp_path, monkeypatch):
    model, album, shards = build_tiny(), tmp_path / "album", tmp_path / "shards"
    for i in range(48):
        write_picture(album / f"{i:02}.png", seed=i)
    (album / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(galleries, "SHARD", 4)
    finished = {}

    def one_is_written():
        finished.update({path: path.stat().st_ino for path in shards.glob("[!.]*")})
        return finished

    killed = losing_a_node(one_is_written)
    gallery = build_in_shards(model, album, shards, encode_parts=encode_on_ray)
    wait_until(lambda: killed)
    assert 0 < len(finished) < 13
    assert {path: path.stat().st_ino for path in finished} == finished  # those of before, not written anew
    held = [path for shard in shards.glob("[!.]*") for path in KeptGallery.load(shard).paths]
    assert sorted(held) == gallery.paths == [f"{i:02}.png" for i in range(48)]  # none lost, none twice
    assert len(gallery.problems) == 1
    np.testing.assert_allclose(gallery.embeddings, Gallery.build(model, album).embeddings, atol=1e-6)
