"""What the model card on the hub says about a run: its data, its results with intervals, and how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult

from timam.data import DATASETS
from timam.evaluation import DIRECTIONS, Embeddings, per_query
from timam.metrics import RETRIEVAL_METRICS
from timam.models.saving import public_name
from timam.run import Run
from timam_lab.statistics import bootstrap_interval


def of_run(run: Path | str) -> dict[str, Any]:
    """The fields of the model card that a finished run fills. They hold no path of this machine.

    For `model.push_to_hub(repo_id, model_card_kwargs=of_run(run))`, and `save_pretrained`.

    Args:
        run: the run directory.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: a file of the run is damaged.
    """
    found = Run(Path(run))
    config, metrics, embeddings = found.config(), found.metrics(), found.test_embeddings()
    name, notes = config.data.dataset, metrics["provenance"].pop("data_notes")
    terms = DATASETS[name].terms
    source = f"{DATASETS[name].source}; terms: {terms}"
    test = "Tested once, on the test split: {queries:,.0f} captions, {gallery:,.0f} pictures."
    facts = metrics["provenance"] | {"seconds": metrics["seconds"], "epoch chosen on validation": metrics["best_epoch"]}
    settings = asdict(config)
    del settings["model"], settings["data"]["root"]  # the model's settings are in its config.json
    settings["train"]["init"] = config.train.init and public_name(config.train.init)
    rows = {direction: _with_intervals(embeddings, direction) for direction in DIRECTIONS}
    return {
        "title": f"TIMAM, trained on {name}",
        "data": "\n\n".join([f"`{name}` ({source}). {test.format(**metrics['text_to_image'])}", *notes]),
        "rendered": name == "pedestrians",
        "columns": [_heading(name) for name in RETRIEVAL_METRICS],
        "rows": {direction.replace("_", " "): list(row.values()) for direction, row in rows.items()},
        "class_level": metrics.get("class_level"),
        "open_set": metrics.get("open_set", {}).get("at_threshold"),
        "facts": facts,
        "settings": json.dumps(settings, indent=2),
        "wrong": 100 - rows["text_to_image"]["rank_1"][0],
        "terms": terms,
        "eval_results": [  # as the hub indexes them
            EvalResult(
                task_type="text-image-retrieval", dataset_type=name, dataset_name=name, dataset_split="test",
                metric_type=key, metric_name=f"{direction} {_heading(key)}",
                metric_value=round(percent, 2),
            )
            for direction, row in rows.items()
            for key, (percent, _, _) in row.items()
        ],
    }  # fmt: skip


def _heading(metric: str) -> str:
    """Of a metric's column: R@1 for "rank_1"; other names as they are."""
    return metric.replace("rank_", "R@")


def _with_intervals(embeddings: Embeddings, direction: str) -> dict[str, tuple[float, float, float]]:
    """{metric: (value, low, high)} in percent, with 95 % bootstrap intervals over the test identities."""
    queries, intervals = per_query(embeddings, direction), {}
    for name, compute in RETRIEVAL_METRICS.items():
        values = compute(queries)
        low, high = bootstrap_interval(values, queries["identity"])
        intervals[name] = (100 * float(np.mean(values)), 100 * low, 100 * high)
    return intervals
