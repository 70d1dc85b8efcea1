"""TIMAM: the encoders, the identity classifier and the discriminator in one model that can be saved."""

import os
import reprlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelHubMixin
from PIL import Image
from torch import Tensor, nn

from timam.config import ModelConfig, check_sentences
from timam.images import ImageError, any_to_pixels, normalize
from timam.models import saving, towers
from timam.models.batching import encode_batches, padding_mask, slices
from timam.models.discriminator import ModalityDiscriminator
from timam.models.image_encoder import ImageEncoder
from timam.models.text_encoder import TextEncoder, WordEmbeddings, word_tokenizer
from timam.models.weights import empty_encoders, fetch_configs, load_backbone, load_language_model, load_tokenizer

ImageInput = Image.Image | str | Path | Tensor

# Rows of `class_weights` and `class_bias`. Where the classifier is shared there is one row, and both indices select it.
IMAGE, TEXT = 0, -1


class TIMAM(
    nn.Module,
    ModelHubMixin,
    library_name="timam",
    tags=["text-image-retrieval", "person-search"],
    paper_url="https://arxiv.org/abs/1908.10534",
    model_card_template=(Path(__file__).parent / "card.md").read_text(encoding="utf-8"),
):
    """Text-Image Modality Adversarial Matching. Raises ValueError for parts that do not fit each other.

    Args:
        num_identities: classes of the identification loss.
        tokenizer: of the language model, or of the learned word embeddings.
        backbone: a torchvision classification model with its head, or a `timam.models.towers.ImageTower`.
        language_model: a text encoder of transformers, or None for learned word embeddings.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        num_identities: int,
        tokenizer: transformers.PreTrainedTokenizerBase,
        backbone: nn.Module,
        language_model: Any,
    ) -> None:
        super().__init__()
        self.model_config, self.num_identities, self.tokenizer = model_config, num_identities, tokenizer
        self.tokenizer.padding_side = "right"  # packed sequences need their padding at the end
        dim, keep = model_config.embedding_dim, model_config.projection == "pretrained"
        self.image_encoder = ImageEncoder(backbone, model_config.image_height, model_config.image_width, dim, keep)
        words: Any
        own_projection: nn.Module | None = None
        if language_model is None:
            width, embeddings = model_config.word_embedding_dim, len(tokenizer)
            words = WordEmbeddings(embeddings, width)
        else:
            words, own_projection = towers.split_text(language_model)
            width, embeddings = int(words.config.hidden_size), words.get_input_embeddings().num_embeddings
            if (limit := towers.longest_input(words)) < model_config.max_tokens:
                name = model_config.language_model
                raise ValueError(f"model.max_tokens = {model_config.max_tokens}: {name} reads at most {limit}")
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        if (highest := max(tokenizer.get_vocab().values(), default=0)) >= embeddings:
            raise ValueError(f"the tokenizer gives ids up to {highest}; {embeddings} have an embedding")
        self.padded_length = towers.padded_length(language_model)
        pooled, summary = model_config.text_head == "pooled", str(model_config.lstm_summary)
        if pooled:  # CLIP and SigLIP were trained with the last token; for BERT-like models the mean is usual [ours]
            has_line = language_model is not None and language_model.config.model_type in towers.TOWERS
            summary = "pooled last" if has_line else "pooled mean"
        own_projection = own_projection if keep and pooled else None
        self.text_encoder = TextEncoder(words, width, model_config.lstm_hidden, dim, summary, own_projection)
        if keep and self.image_encoder.new_projection and self.text_encoder.new_projection:
            raise ValueError("model.projection = 'pretrained': neither encoder has a projection of its own to keep")
        self.text_encoder.normalizes_words = model_config.normalize_words
        hidden, conditional = model_config.discriminator_hidden, model_config.discriminator_conditional
        self.discriminator = ModalityDiscriminator(dim, hidden, conditional)
        classifiers = 1 if model_config.shared_classifier else 2
        # Normalised rows: only their direction counts. Free rows start as nn.Linear's, else the first logits are huge.
        scale = 1.0 if model_config.normalized_classifier else (3 * dim) ** -0.5
        self.class_weights = nn.Parameter(torch.randn(classifiers, num_identities, dim) * scale)
        self.class_bias = nn.Parameter(torch.zeros(classifiers, num_identities))
        self.modality_means: Tensor | None
        self.register_buffer("modality_means", None)  # (2, D), images first; a finished run sets it
        self.image_encoder.to(memory_format=torch.channels_last)

    @classmethod
    def pretrained(cls, model_config: ModelConfig, num_identities: int, captions: list[str]) -> "TIMAM":
        """A model with pretrained backbone and language model; the other layers are random, from torch's seed.

        The training captions give the vocabulary where word embeddings are learned. Raises WeightsError for weights
        that could be neither found nor fetched, and ValueError for encoders or sizes that cannot be used.
        """
        name = model_config.language_model
        configs = fetch_configs(model_config)
        tokenizer = word_tokenizer(captions) if name == "none" else load_tokenizer(name)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # finds wrong sizes before weights are fetched
            cls(model_config, num_identities, tokenizer, *empty_encoders(model_config, *configs))
        backbone = load_backbone(model_config.backbone, model_config.backbone_weights)
        words = None if name == "none" else load_language_model(name, model_config.language_model_weights)
        return cls(model_config, num_identities, tokenizer, backbone, words)

    @property
    def device(self) -> torch.device:
        return self.class_bias.device

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> token_ids (B, T) int64 and attention_mask (B, T) int64, of at most `max_tokens` tokens.

        SigLIP was trained with padding as part of the text: T is the length that it was trained with, and the mask is
        all ones. A caption without any known token, such as an emoji, becomes one unknown word.
        """
        rows = self.tokenizer(list(captions), truncation=True, max_length=self.model_config.max_tokens)["input_ids"]
        rows = [row or [self.tokenizer.unk_token_id] for row in rows]
        lengths = [len(row) for row in rows]
        width = self.padded_length or max(lengths)
        token_ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        return token_ids, torch.ones_like(token_ids) if self.padded_length else padding_mask(lengths)

    def forward(
        self, images: Tensor, words: Tensor, attention_mask: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both encoders in one pass: image_embeddings and text_embeddings, (B, D) each, not unit length.

        `images` (B, 3, H, W) are float32 and normalised, or outputs of the frozen blocks; the others are as in
        `TextEncoder.forward`.
        """
        return self.image_encoder(images), self.text_encoder(words, attention_mask, lengths)

    def encode_images(
        self,
        images: Sequence[ImageInput],
        batch_size: int = 64,
        progress: bool = False,
        unreadable: dict[int, str] | None = None,
    ) -> Tensor:
        """Embeds pictures in eval mode: (N, D) float32 on the CPU, not unit length; compare by cosine similarity.

        Args:
            images: PIL images, paths, or uint8 tensors (3, h, w) of any size; they may be mixed.
            unreadable: takes the position of each unreadable file and the reason; the file's row is NaN then. Without
                it, such a file raises `timam.images.ImageError`.
        """
        if isinstance(images, str | Path):
            raise ValueError(f"images = {str(images)!r}: expected a list of pictures, found one path")
        images, size = list(images), (self.model_config.image_height, self.model_config.image_width)

        def decode(image: int) -> Tensor:
            try:
                return any_to_pixels(images[image], *size)
            except ImageError as error:
                if unreadable is None:
                    raise
                unreadable[image] = str(error)
                return torch.zeros(3, *size, dtype=torch.uint8)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = self._encode(
                slices(range(len(images)), batch_size),
                lambda batch: (torch.stack(list(pool.map(decode, batch))),),
                lambda pixels: self.image_encoder(normalize(pixels)),
                "encoding images" if progress else None,
            )
        rows[list(unreadable or ())] = torch.nan
        return rows

    def encode_pixels(
        self,
        pixels: np.ndarray,
        batch_size: int = 64,
        progress: bool = False,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`encode_images` of decoded pictures (N, 3, H, W) uint8 of the model's size, by default (N, D).

        Or of the outputs (N, C, h, w) float16 of the frozen blocks. `encode` replaces the image encoder, for example by
        its `features`: normalised pictures (B, 3, H, W) -> (B, C).
        """
        encode = encode or self.image_encoder
        return self._encode(
            slices(pixels, batch_size),
            lambda rows: (torch.from_numpy(np.array(rows)),),  # a writable copy
            lambda batch: encode(normalize(batch) if batch.dtype == torch.uint8 else batch.float()),
            "encoding images" if progress else None,
        )

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64, progress: bool = False) -> Tensor:
        """Embeds sentences in eval mode: (N, D) float32 on the CPU, not unit length.

        Sentences of similar lengths share a batch, which saves padding. Warns where a sentence is longer than
        `max_tokens`, as its end is not read; ValueError for what is no string, blank, or longer than `LONGEST_TEXT`.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts = {texts!r}: expected a list of strings, found one string")
        texts = list(texts)  # by position, also of a pandas column with an index of its own
        check_sentences(texts, "texts[{}]")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        longest = 0

        def load(batch: list[int]) -> tuple[Tensor, Tensor]:
            nonlocal longest
            token_ids, attention_mask = self.tokenize([texts[i] for i in batch])
            longest = max(longest, token_ids.shape[1])
            return token_ids, attention_mask

        bar = "encoding texts" if progress else None
        rows = self._encode(slices(order, batch_size), load, self.text_encoder, bar)
        limit = self.model_config.max_tokens
        if longest >= limit:  # a sentence may have been cut
            whole = self.tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
            if cut := [text for text, ids in zip(texts, whole, strict=True) if len(ids) > limit]:
                read = f"longer than the {limit} tokens that the model reads; their end is cut off, for example of"
                warnings.warn(f"{len(cut)} of {len(texts)} sentences are {read} {reprlib.repr(cut[0])}", stacklevel=2)
        return torch.empty_like(rows).index_copy_(0, torch.tensor(order, dtype=torch.int64), rows)

    def encode_word_states(self, word_states: Any, batch_size: int = 64) -> Tensor:
        """Embeds captions from a `timam.stores.WordStates`: (M, D) float32 on the CPU, not unit length."""
        captions = np.arange(len(word_states))
        batches = np.array_split(captions, -(-len(captions) // batch_size))
        return self._encode(batches, word_states.gather, self.text_encoder)

    def _encode(self, *work: Any) -> Tensor:
        """`encode_batches` as one tensor (N, D)."""
        rows = list(encode_batches(self, *work))
        return torch.cat(rows) if rows else torch.empty(0, self.model_config.embedding_dim)

    def _save_pretrained(self, save_directory: Path) -> None:
        saving.save(self, save_directory)

    def generate_model_card(self, *args: Any, eval_results: list[EvalResult] | None = None, **fields: Any) -> ModelCard:
        """The card on the hub: use, limits and risks; and with fields of `timam_lab.card`, data and results."""
        names = {key: saving.public_name(getattr(self.model_config, key)) for key in ("backbone", "language_model")}
        card = super().generate_model_card(*args, text_encoder=self.text_encoder, **names, **fields)
        if eval_results:
            card.data["model_name"], card.data["eval_results"] = fields["title"], eval_results
        return card

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "TIMAM":
        """Reads a folder that `save_pretrained` wrote, or a hub repository; in eval mode, on the CPU.

        `options` are huggingface_hub's: revision, cache_dir, force_download, local_files_only and token. Raises
        FileNotFoundError where no saved model is, and ValueError, naming a file that is damaged or does not fit.
        """
        return saving.load(cls, saving.fetched(str(pretrained_model_name_or_path), **options))
