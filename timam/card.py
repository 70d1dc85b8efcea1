"""What a run adds to its model's card on the hub: data, results with intervals, and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult

from timam import config as configs
from timam.data import DATASETS
from timam.evaluation import DIRECTIONS, Embeddings, per_query
from timam.metrics import RETRIEVAL_METRICS, bootstrap_interval
from timam.run import Run


def of_run(run: Path | str) -> dict[str, Any]:
    """The fields of the model card that a finished run fills; no path of this machine is in them.

    For `model.push_to_hub(repo_id, model_card_kwargs=of_run(run))`, and `save_pretrained`.

    Args:
        run: the run directory; its config.json, metrics.json and test_embeddings.safetensors are read.

    Raises:
        FileNotFoundError: a run that is not finished.
        ValueError: a damaged one.
    """
    run = Path(run)
    config = Run(run).config()
    metrics, embeddings = Run(run).metrics(), Run(run).test_embeddings()
    rows = {direction: _with_intervals(embeddings, direction) for direction in DIRECTIONS}
    name, notes = config.data.dataset, metrics["provenance"].pop("data_notes")
    source = f"{DATASETS[name].source}; terms: {DATASETS[name].terms}"
    test = "Tested once, on the test split: {queries:,.0f} captions, {gallery:,.0f} pictures."
    facts = metrics["provenance"] | {"seconds": metrics["seconds"], "epoch chosen on validation": metrics["best_epoch"]}
    settings = {k: v for k, v in configs.to_dict(config).items() if k != "model"}  # which the model's config.json has
    del settings["data"]["root"]
    return {
        "title": f"TIMAM, trained on {name}",
        "data": "\n\n".join([f"`{name}` ({source}). {test.format(**metrics['text_to_image'])}", *notes]),
        "rendered": name == "pedestrians",
        "columns": [metric.title for metric in RETRIEVAL_METRICS.values()],
        "rows": {direction.replace("_", " "): list(row.values()) for direction, row in rows.items()},
        "class_level": metrics.get("class_level"),
        "facts": facts,
        "settings": json.dumps(settings, indent=2),
        "wrong": 100 - rows["text_to_image"]["rank_1"][0],
        "terms": DATASETS[name].terms,
        "eval_results": [
            EvalResult(
                task_type="text-image-retrieval", dataset_type=name, dataset_name=name, dataset_split="test",
                metric_type=key, metric_name=f"{direction} {RETRIEVAL_METRICS[key].title}",
                metric_value=round(value, 2),
            )
            for direction, row in rows.items() for key, (value, _, _) in row.items()
        ],
    }  # fmt: skip


def _with_intervals(embeddings: Embeddings, direction: str) -> dict[str, tuple[float, float, float]]:
    """Each value with the ends of its 95 % bootstrap interval over test identities, in percent."""
    found = per_query(embeddings, direction)
    values = {name: metric.values(found) for name, metric in RETRIEVAL_METRICS.items()}
    ends = {key: bootstrap_interval(value, found["identity"]) for key, value in values.items()}
    return {key: (100 * float(np.mean(v)), 100 * ends[key][0], 100 * ends[key][1]) for key, v in values.items()}
