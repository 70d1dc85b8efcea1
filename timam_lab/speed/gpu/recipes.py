"""Presets as configs that need no hub, at the sizes of a GPU or of a rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from timam.config import MINILM, PRESETS, Config, override
from timam.models.weights import load_tokenizer
from timam_lab.speed.gpu import CARRIED, Lab

TINY = "image_height=64 image_width=32"  # of a rehearsal
SMALL_ENCODERS = (
    f"{TINY} backbone=resnet18 language_model={MINILM} lstm_hidden=32 frozen_blocks=0"  # random ones of a rehearsal
)


def settings_of(preset: str, lab: Lab, layers: int = 2) -> list[str]:
    """Encoders that need no hub: `quick` has its own, packaged or carried; the others shapes with random weights.

    Args:
        layers: of the transformers in `paper`, `modern` and `clip`.
    """
    if preset in ("smoke", "quick"):
        carried = [f"language_model={CARRIED / 'MiniLM'}", f"backbone_weights={CARRIED / 'mobilenet_v2.safetensors'}"]
        return carried if CARRIED.exists() else []
    folder = lab.work / f"{'clip' if preset == 'clip' else 'bert'}-{layers}"
    if not (folder / "config.json").exists():
        tokenizer = load_tokenizer(str(CARRIED / "MiniLM") if CARRIED.exists() else MINILM)
        tokens: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
                                  "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
                                  "num_hidden_layers": layers}  # fmt: skip
        seen = {"patch_size": 16, "num_hidden_layers": layers}
        shape: Any = transformers.BertConfig(**tokens, hidden_size=128, num_attention_heads=2, intermediate_size=512)
        if preset == "clip":
            shape = transformers.CLIPConfig(text_config=tokens, vision_config=seen, projection_dim=512)
        tokenizer.save_pretrained(folder)
        shape.save_pretrained(folder)
    random = ["backbone_weights=none", f"language_model={folder}", "language_model_weights=false"]
    return [*random, f"backbone={folder}"] if preset == "clip" else random


def configure(preset: str, lab: Lab, root: Path, *settings: str) -> Config:
    given = [part for text in settings for part in text.split()]
    return override(PRESETS[preset], ["dataset=pedestrians", f"root={root}", *settings_of(preset, lab), *given])
