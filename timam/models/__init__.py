"""The encoders, the modality discriminator, and TIMAM that joins them."""

from timam.models.discriminator import ModalityDiscriminator
from timam.models.image_encoder import ImageEncoder
from timam.models.joint import TIMAM
from timam.models.text_encoder import TextEncoder
from timam.models.weights import WeightsError

__all__ = ["TIMAM", "ImageEncoder", "ModalityDiscriminator", "TextEncoder", "WeightsError"]
