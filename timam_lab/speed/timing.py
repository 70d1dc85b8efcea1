"""Timing that other work on the machine disturbs little: the contenders take turns in one process, medians count."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import torchvision
import transformers

from timam.config import ModelConfig
from timam.models import TIMAM
from timam.models.text_encoder import word_tokenizer
from timam.models.weights import load_backbone, load_language_model
from timam.provenance import provenance

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Work = Callable[[], Any]


def cost(work: Work, device: torch.device = DEVICE) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads of this process, which other processes disturb less."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started, processor = time.perf_counter(), time.process_time()
    work()
    wait()
    return time.perf_counter() - started, time.process_time() - processor


def turns(rounds: int, contenders: Mapping[str, Work], prepare: Work = lambda: None) -> pd.DataFrame:
    """The cost of each contender in each round, after a first round that does not count.

    Args:
        contenders: name -> work.
        prepare: called before each contender, not timed.

    Returns:
        A row per round; columns ("seconds", NAME) and ("processor", NAME).
    """
    rows = []
    for _ in range(rounds + 1):
        row = {}
        for name, work in contenders.items():
            prepare()
            row["seconds", name], row["processor", name] = cost(work)
        rows.append(row)
    return pd.DataFrame(rows[1:], columns=pd.MultiIndex.from_tuples(rows[0]))


def medians(
    rounds: int, contenders: Mapping[str, Work], prepare: Work = lambda: None, clock: str = "seconds"
) -> dict[str, float]:
    """The median of each contender's cost by one clock of `turns`, by name."""
    taken = turns(rounds, contenders, prepare)
    return {name: float(taken[clock, name].median()) for name in contenders}


def random_model(config: ModelConfig, identities: int, captions: list[str], device: torch.device = DEVICE) -> TIMAM:
    """The config's architecture with random weights: they cost the same time as others, and no download is needed.

    The language model has MiniLM's shape where the config names MiniLM, else that of BERT-base. Folders in the config
    have the shapes in their config.json.
    """
    torch.manual_seed(0)
    with device:  # a GPU draws the values in milliseconds, a core in seconds
        if Path(config.backbone).is_dir():
            pair = load_backbone(config.backbone, "none"), load_language_model(config.language_model, False)
            return TIMAM(config, identities, word_tokenizer(captions), *pair).to(device)
        shape = transformers.BertConfig()
        if "MiniLM" in config.language_model:
            small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
            shape.update(small)
        backbone = torchvision.models.get_model(config.backbone, weights=None)
        language_model = transformers.BertModel(shape, add_pooling_layer=False)
        return TIMAM(config, identities, word_tokenizer(captions), backbone, language_model).to(device)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that also takes the stores."""
    with TemporaryDirectory(prefix="timam-speed-") as name:
        before, os.environ["TIMAM_CACHE"] = os.environ.get("TIMAM_CACHE"), f"{name}/cache"
        try:
            yield Path(name)
        finally:
            os.environ.pop("TIMAM_CACHE") if before is None else os.environ.update(TIMAM_CACHE=before)


def document(module: str, title: str, text: str, *parts: Sequence[Mapping[str, str]] | str) -> str:
    """A report in Markdown: title, command, commit and machine, text, parts.

    Args:
        module: its __file__.
        parts: tables, each a list of rows with the same columns, or paragraphs.
    """
    made = provenance(DEVICE)
    command = " ".join([f"python -m timam_lab.speed.{Path(module).stem}", *sys.argv[1:]])
    machine = f"{made['device']}, {made['threads']} thread(s), torch {made['torch']}"
    content = [f"# {title}", f"`{command}` at commit {made['commit']}, {machine}. {text}"]
    for part in parts:
        if not isinstance(part, str):
            lines = [list(part[0]), ["---"] * len(part[0]), *(row.values() for row in part)]
            part = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        content.append(part)
    return "\n\n".join(content) + "\n"


def report(output: Path, *content: Any) -> None:
    """Writes and prints a `document`."""
    text = document(*content)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(text, end="")
