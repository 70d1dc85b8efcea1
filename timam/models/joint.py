"""TIMAM: the encoders, the identity classifier and the discriminator in one saveable model."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from timam import config as configs
from timam.config import LONGEST_TEXT, ModelConfig
from timam.files import check_sums, read_json
from timam.images import ImageError, any_to_pixels, normalize, prefetch
from timam.models import weights
from timam.models.discriminator import ModalityDiscriminator
from timam.models.image_encoder import ImageEncoder
from timam.models.text_encoder import TextEncoder, WordEmbeddings, word_tokenizer

ImageInput = Image.Image | str | Path | Tensor
IMAGE, TEXT = 0, -1  # positions of the modalities' identity classifiers: the same one where there is only one


class TIMAM(
    nn.Module,
    ModelHubMixin,
    library_name="timam",
    tags=["text-image-retrieval", "person-search"],
    paper_url="https://arxiv.org/abs/1908.10534",
    model_card_template=(Path(__file__).parent / "card.md").read_text(encoding="utf-8"),
):
    """Text-Image Modality Adversarial Matching.

    `TIMAM.pretrained` starts from pretrained parts; `TIMAM.from_pretrained(path or repo id)` reads a saved model,
    which holds its tokenizer and preprocessing and needs nothing else.

    Args:
        model_config: sizes and names.
        num_identities: classes of the identification loss.
        tokenizer: of the language model, or of the learned word embeddings.
        backbone: a torchvision classification model with its head.
        language_model: a BERT-like transformers encoder, or None for learned word embeddings.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        num_identities: int,
        tokenizer: transformers.PreTrainedTokenizerBase,
        backbone: nn.Module,
        language_model: transformers.PreTrainedModel | None,
    ) -> None:
        super().__init__()
        if num_identities < 1:
            raise ValueError(f"num_identities = {num_identities}: expected 1 or more")
        self.model_config = model_config
        self.num_identities = num_identities
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "right"  # packed sequences need their padding at the end
        dim = model_config.embedding_dim
        self.image_encoder = ImageEncoder(backbone, model_config.image_height, model_config.image_width, dim)
        words: nn.Module
        if language_model is None:
            width = model_config.word_embedding_dim
            words = WordEmbeddings(len(tokenizer), width)
        else:
            words, width = language_model, int(language_model.config.hidden_size)
            self._check_max_tokens(language_model.config)
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        rows: Any = words.embedding if language_model is None else language_model.get_input_embeddings()
        if (highest := max(tokenizer.get_vocab().values(), default=0)) >= rows.num_embeddings:
            raise ValueError(
                f"the tokenizer gives ids up to {highest}, of {rows.num_embeddings} that have an embedding"
            )
        self.text_encoder = TextEncoder(words, width, model_config.lstm_hidden, dim, model_config.lstm_summary)
        self.discriminator = ModalityDiscriminator(dim, model_config.discriminator_hidden)
        heads = 1 if model_config.shared_classifier else 2
        # Unit rows: only the direction counts. Free rows start as nn.Linear's do, or the first logits would be huge.
        scale = 1.0 if model_config.normalized_classifier else (3 * dim) ** -0.5
        self.class_weights = nn.Parameter(torch.randn(heads, num_identities, dim) * scale)
        self.class_bias = nn.Parameter(torch.zeros(heads, num_identities))
        self.image_encoder.to(memory_format=torch.channels_last)

    def _check_max_tokens(self, language_config: Any) -> None:
        limit = getattr(language_config, "max_position_embeddings", self.model_config.max_tokens)
        if self.model_config.max_tokens > limit:
            raise ValueError(
                f"model.max_tokens = {self.model_config.max_tokens}: {self.model_config.language_model} reads "
                f"at most {limit}"
            )

    @classmethod
    def pretrained(cls, model_config: ModelConfig, num_identities: int, captions: list[str]) -> TIMAM:
        """A model with pretrained backbone and language model, the rest random from torch's seed.

        Args:
            captions: the training captions; the vocabulary where word embeddings are learned.

        Raises:
            timam.models.weights.WeightsError: pretrained parts that could not be had.
            ValueError: a backbone or size that cannot be.
        """
        backbone = weights.load_backbone(model_config.backbone, model_config.backbone_weights)
        if model_config.language_model == "none":
            return cls(model_config, num_identities, word_tokenizer(captions), backbone, None)
        name = model_config.language_model
        language_model = weights.load_language_model(name, model_config.language_model_weights)
        return cls(model_config, num_identities, weights.load_tokenizer(name), backbone, language_model)

    # -- embedding ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.class_bias.device

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> token_ids (B, T) int64 and attention_mask (B, T) int64, T at most `max_tokens`.

        A caption of no known piece (an emoji, say) is read as one unknown word.
        """
        batch = self.tokenizer(
            list(captions), truncation=True, max_length=self.model_config.max_tokens, add_special_tokens=True
        )["input_ids"]
        ids = [torch.tensor(row or [self.tokenizer.unk_token_id]) for row in batch]
        lengths = torch.tensor([len(row) for row in ids])
        token_ids = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return token_ids, (torch.arange(token_ids.shape[1])[None, :] < lengths[:, None]).long()

    def forward(
        self, images: Tensor, attention_mask: Tensor, token_ids: Tensor | None = None,
        word_states: Tensor | None = None, lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both encoders in one pass.

        Args:
            images: (B, 3, H, W) float32, normalised.
            attention_mask: (B, T) of 1 for tokens and 0 for padding.
            token_ids: (B, T) int64; or, while the language model is frozen,
            word_states: (B, T, C) its stored outputs for them.
            lengths: as `TextEncoder.summarize`.

        Returns:
            image_embeddings and text_embeddings, (B, D) each, not unit length.
        """
        if word_states is None:
            if token_ids is None:
                raise ValueError("expected token_ids or word_states")
            word_states = self.text_encoder.word_states(token_ids, attention_mask)
        return self.image_encoder(images), self.text_encoder.summarize(word_states, attention_mask, lengths)

    def encode_images(
        self, images: Sequence[ImageInput], batch_size: int = 64, progress: bool = False,
        unreadable: dict[int, str] | None = None,
    ) -> Tensor:  # fmt: skip
        """Embeds pictures, in eval mode; the next batch is decoded in threads while the model is at one.

        Args:
            images: PIL images, paths, or uint8 tensors (3, h, w) of any size; they may be mixed.
            batch_size: pictures at a time.
            progress: shows a bar.
            unreadable: where given, takes the position of each file that is no readable picture, and why; its row
                of the result is NaN.

        Returns:
            (N, D) float32 on the CPU, not unit length: compare them by cosine similarity.

        Raises:
            timam.images.ImageError: a file that is no readable picture, without `unreadable`.
        """
        size = self.model_config.image_height, self.model_config.image_width

        def decode(i: int) -> Tensor:
            try:
                return any_to_pixels(images[i], *size)
            except ImageError as error:
                if unreadable is None:
                    raise
                unreadable[i] = str(error)
                return torch.zeros(3, *size, dtype=torch.uint8)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            everything = range(len(images))
            load = lambda start: torch.stack(list(pool.map(decode, everything[start : start + batch_size])))  # noqa: E731
            batches = prefetch(load, everything[:: batch_size or 1], self.device)
            rows = self._encode(images, lambda _: self.image_encoder(normalize(next(batches))), batch_size, progress,
                                "images")  # fmt: skip
        rows[list(unreadable or ())] = torch.nan
        return rows

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64, progress: bool = False) -> Tensor:
        """Embeds sentences, in eval mode: (N, D) float32 on the CPU, not unit length.

        Batches hold sentences of alike lengths, for little padding.

        Raises:
            ValueError: a text that is not a string, blank, or longer than `timam.config.LONGEST_TEXT`.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts = {texts!r}: expected a list of strings, found one string")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip() or re.search(r"[\ud800-\udfff]", text):
                raise ValueError(f"texts[{i}] = {reprlib.repr(text)}: expected a sentence")
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"texts[{i}] has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")

        def encode(batch: Sequence[str]) -> Tensor:
            token_ids, attention_mask = self.tokenize(batch)
            return self.text_encoder(token_ids.to(self.device), attention_mask.to(self.device))

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = self._encode([texts[i] for i in order], encode, batch_size, progress, "texts")
        return torch.empty_like(rows).index_copy_(0, torch.tensor(order, dtype=torch.int64), rows)

    def _encode(self, items: Sequence[Any], encode: Any, batch_size: int, progress: bool, unit: str) -> Tensor:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected 1 or more")
        parts = [torch.empty(0, self.model_config.embedding_dim)]
        starts = tqdm(range(0, len(items), batch_size), disable=not progress, desc=f"encoding {unit}", unit="batch")
        with eval_mode(self):
            parts += [encode(items[start : start + batch_size]).float().cpu() for start in starts]
        return torch.cat(parts)

    # -- saving -------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        """model.safetensors, config.json and tokenizer/: everything that encode_images and encode_texts need."""
        language_config = getattr(self.text_encoder.language_model, "config", None)
        language_config = language_config and json.loads(language_config.to_json_string(use_diff=False))
        if language_config:
            language_config.pop("_name_or_path", None)  # a folder of this machine is no business of the hub's
        content = {
            "model": {**dataclasses.asdict(self.model_config), "language_model": self._language_model_name()},
            "num_identities": self.num_identities,
            "language_model_config": language_config,
        }
        (save_directory / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(save_directory / "tokenizer")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, save_directory / "model.safetensors", metadata={"format": "pt"})

    def _language_model_name(self) -> str:
        """Its name on the hub; of a folder, the last part."""
        name = self.model_config.language_model
        return Path(name).resolve().name if Path(name).is_dir() else name

    def generate_model_card(self, *args: Any, eval_results: list[EvalResult] | None = None, **fields: Any) -> ModelCard:
        """The card on the hub: use, limits and risks; and with the fields of `timam.card.of_run`, data and results."""
        learns_words = self.text_encoder.learns_words
        name = "learned word embeddings" if learns_words else self._language_model_name()
        fields = {
            "backbone": self.model_config.backbone,
            "language_model": name,
            "learns_words": learns_words,
            **fields,
        }
        card = super().generate_model_card(*args, **fields)
        if eval_results:
            card.data["model_name"], card.data["eval_results"] = fields["title"], eval_results
        return card

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> TIMAM:
        """Reads a folder that `model.save_pretrained(folder)` wrote, or a hub repository; in eval mode, on the CPU.

        Args:
            pretrained_model_name_or_path: the folder or the repository's id.
            options: revision, cache_dir, force_download, local_files_only and token, as huggingface_hub has them.

        Raises:
            FileNotFoundError, ValueError: a file that is absent, damaged or does not fit the others, by name.
        """
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, cache_dir: str | Path | None = None,
                         force_download: bool = False, local_files_only: bool = False,
                         token: str | bool | None = None, **_: Any) -> TIMAM:  # fmt: skip
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(
                model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
                allow_patterns=["config.json", "model.safetensors", "tokenizer/*"],
            ))  # fmt: skip
        check_sums(folder)
        content, state = _read_saved(folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder / "tokenizer", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers and tokenizers raise many kinds
            raise ValueError(f"{folder / 'tokenizer'} is damaged: {error}") from error
        try:
            model_config = configs.from_dict({"model": content["model"]}).model
            language_config, identities = content["language_model_config"], content["num_identities"]
            if language_config and _layers(language_config) > len(state):
                raise ValueError(f"{_layers(language_config):,} layers of {len(state)} tensors")
            backbone = weights.build_backbone(model_config.backbone, model_config.backbone_weights)

            def build(backbone: nn.Module) -> TIMAM:
                words = language_config and weights.build_language_model(language_config)
                return cls(model_config, identities, tokenizer, backbone, words)

            stand_in = copy.deepcopy(backbone).to("meta")
            with torch.device("meta"):  # sizes first: a config of a few bytes may ask for terabytes
                sizes = {name: tensor.shape for name, tensor in build(stand_in).state_dict().items()}
            found = {name: tensor.shape for name, tensor in state.items()}
            if differing := sorted(n for n in sizes | found if sizes.get(n) != found.get(n)):
                n = differing[0]
                raise _SizeError(f"{n} has the size {found.get(n)}, expected {sizes.get(n)} (one of {len(differing)})")
            model = build(backbone)
        except _SizeError as error:
            raise ValueError(f"{folder}: model.safetensors does not fit config.json: {error}") from error
        except Exception as error:  # torchvision and transformers raise many kinds
            raise ValueError(f"{folder / 'config.json'} gives no model: {type(error).__name__}: {error}") from error
        model.load_state_dict(state)
        return model.eval()


class _SizeError(ValueError):
    """Tensors that a config does not ask for."""


def _layers(language_config: dict[str, Any]) -> int:
    """The greatest number of layers that a transformers config asks for, under any of its names."""
    return max((v for k, v in language_config.items() if "layer" in k and type(v) is int), default=0)


def _read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and model.safetensors of a saved model. Raises FileNotFoundError or ValueError naming the file."""
    for name in ("config.json", "model.safetensors", "tokenizer/tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a saved TIMAM: it has no {name}")
    try:
        content = read_json(folder / "config.json")
        found = content if isinstance(content, dict) else {}
        missing = {"model", "num_identities", "language_model_config"} - set(found)
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        if type(content["num_identities"]) is not int:
            raise ValueError(f"num_identities = {content['num_identities']!r}: expected int")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not a saved TIMAM's config: {error}") from error
    try:
        state = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.is_complex() or not tensor.isfinite().all():
            raise ValueError(f"{folder / 'model.safetensors'}: {name} holds other than finite numbers")
    return content, state


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; the model's own mode again afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
