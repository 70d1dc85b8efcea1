"""Text-Image Modality Adversarial Matching (Sarafianos, Xu, Kakadiaris; ICCV 2019)."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["TIMAM", "__version__"]

TIMAM: Any
"""The model, `timam.models.TIMAM`, which is imported on first use."""


def __getattr__(name: str) -> Any:
    """Imports the model on first use: `timam --help` need not wait for transformers."""
    if name == "TIMAM":
        from timam.models import TIMAM

        return TIMAM
    raise AttributeError(f"module 'timam' has no attribute {name!r}")
