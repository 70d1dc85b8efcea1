"""Encoding a folder of pictures on a Ray cluster, whose machines must all see the pictures and the shards."""

from __future__ import annotations

import copy
from pathlib import Path

from tqdm.auto import tqdm

from timam.models import TIMAM
from timam.search import PictureFile, encode_shard


def encode_on_ray(
    model: TIMAM, folder: Path, parts: list[list[PictureFile]], shards: Path, gpus: float = 0, progress: bool = False
) -> None:
    """Makes the shard of each part as a task of Ray, which tries the tasks of a lost machine again.

    For `Gallery.build(..., encode_parts=encode_on_ray)`. A task has so many GPUs, or without any one CPU core. Raises
    RuntimeError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RuntimeError("--engine ray needs Ray: pip install ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one

    @ray.remote(num_cpus=1, num_gpus=gpus)
    def task(model: TIMAM, part: list[PictureFile]) -> None:
        encode_shard(model.to("cuda" if gpus else "cpu"), folder, part, shards)

    shared = ray.put(copy.deepcopy(model).cpu())
    tasks = [task.remote(shared, part) for part in parts]
    for done in tqdm(tasks, desc="encoding", unit="shard", disable=not progress):
        ray.get(done)
