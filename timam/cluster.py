"""Batch inference on the machines of a Ray cluster."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm


def map_on_ray(
    work: Callable[[Any, Any], Any], model: nn.Module, parts: Sequence[Sequence[Any]], gpus: float, progress: bool
) -> None:
    """Runs work(model, part) for each part as a task of Ray Data. Ray repeats tasks whose worker or machine is lost.

    Args:
        work: leaves its result in files that all machines see; tasks of a lost machine may run twice.
        parts: lists that JSON can hold.
        gpus: of each task. A task without GPUs has one CPU core.

    Raises:
        RuntimeError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError:
        raise RuntimeError("engine = 'ray' needs Ray: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one
    shared = ray.put(copy.deepcopy(model).cpu())

    def task(row: dict[str, Any]) -> dict[str, Any]:
        part = json.loads(row["part"])
        work(ray.get(shared).to("cuda" if gpus else "cpu"), part)
        return {"done": len(part)}

    rows = ray.data.from_items([{"part": json.dumps(part)} for part in parts], override_num_blocks=len(parts))
    total = sum(map(len, parts))
    with tqdm(total=total, desc="encoding", unit="picture", disable=not progress) as bar:
        for row in rows.map(task, num_cpus=1, num_gpus=gpus or None).iter_rows():
            bar.update(row["done"])
