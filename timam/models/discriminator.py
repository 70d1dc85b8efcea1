"""Modality discriminator D [paper]: two linear layers down to one scalar, image or text?"""

from __future__ import annotations

from torch import Tensor, nn


class ModalityDiscriminator(nn.Module):
    """Embeddings (B, D) of either modality -> modality_logits (B,), positive for "image".

    Without batch normalisation, which would remove the difference in mean and spread between the modalities.
    LeakyReLU [recalled].
    """

    def __init__(self, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embedding_dim, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings).squeeze(1)  # not squeeze(): a batch of one keeps its axis
