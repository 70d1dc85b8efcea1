"""Modality discriminator D [paper]: two linear layers down to one scalar, image or text?"""

import torch
from torch import Tensor, nn


class ModalityDiscriminator(nn.Module):
    """Embeddings (B, D) of either modality -> modality_logits (B,), positive for "image".

    Without batch normalisation, which would remove the difference in mean and spread between the modalities.
    LeakyReLU [recalled]. With `conditional` it compares within an identity: the last layer's weights also depend on the
    identity's direction (a projection discriminator: Miyato and Koyama, ICLR 2018). It starts as the other one.
    """

    def __init__(self, embedding_dim: int, hidden: int, conditional: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embedding_dim, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.condition = nn.Parameter(torch.zeros(hidden, embedding_dim)) if conditional else None

    def forward(self, embeddings: Tensor, directions: Tensor | None = None) -> Tensor:
        """`directions` (B, D), where it is conditional: of each embedding's identity."""
        hidden = self.layers[:-1](embeddings)
        logits = self.layers[-1](hidden).squeeze(1)  # not squeeze(): a batch of one keeps its axis
        if self.condition is None or directions is None:
            return logits
        return logits + (hidden * (directions @ self.condition.T)).sum(dim=1)
