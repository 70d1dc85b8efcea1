"""Shared fixtures: no network, a cache of its own, and a TIMAM that is built in a fraction of a second."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub on import

import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from timam.config import ModelConfig

if device := os.environ.get("TIMAM_TEST_DEVICE"):  # set by timam_lab.speed.gpu
    torch.set_default_device(device)
    generator = torch.Generator

    class Generator:  # a class, as transformers names `torch.Generator | None` when it is imported
        def __new__(cls, device=device):
            return generator(device)

    torch.Generator = Generator
torch.backends.cudnn.allow_tf32 = False  # the expected values have the precision of float32
torch.set_num_threads(1)  # sizes here are too small to gain from more, and the tests may run side by side

# Of generated inputs: the same ones in every run.
bounded = settings(
    max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

WORDS = "a an and bag black blue boots coat dress green hair hat in jacket man red shirt shoes skirt the white woman"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Pixel and word-state stores go to a temporary folder, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIMAM_CACHE", str(tmp_path_factory.mktemp("timam_cache")))
        yield


def word_piece_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Lower-casing word pieces in BERT's form: a few whole words, and single letters for every other one."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    characters = string.ascii_lowercase + string.digits
    pieces += [c for c in characters + ".,!'-" if c not in pieces] + ["##" + c for c in characters]
    fast = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True)
    tokens = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast.backend_tokenizer, **tokens)


def tiny_language_model(vocabulary_size: int, dropout: float = 0.1) -> transformers.BertModel:
    """A BERT of two layers, 16 wide, with random weights and no pooler."""
    config = transformers.BertConfig(
        vocab_size=vocabulary_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Path:
    """Twelve persons in the layout of CUHK-PEDES; tests only read them."""
    from layouts import write_person_search

    return write_person_search(tmp_path_factory.mktemp("people") / "data")


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A folder with a small BERT that knows the words of `people`."""
    from layouts import write_language_model

    return write_language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture
def call(capsys, monkeypatch) -> Callable:
    """call(*arguments) -> the exit code, stdout and stderr of `timam ...`, in this process."""
    from timam import cli

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", ["timam", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return word_piece_tokenizer()


def build_tiny(
    num_identities: int = 4, seed: int = 0, captions: list[str] | None = None, dropout: float = 0.1, **fields: Any
):
    """A TIMAM with random weights; `fields` are ModelConfig's.

    `language_model="none"` learns the words of `captions` instead of reading them with a tiny BERT.
    """
    from timam.models import TIMAM
    from timam.models.text_encoder import word_tokenizer
    from timam.models.weights import load_backbone

    values = {
        "backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_height": 64, "image_width": 32,
        "language_model": "tiny-bert", "max_tokens": 16, "word_embedding_dim": 12, "lstm_hidden": 8,
        "embedding_dim": 16, "discriminator_hidden": 8, **fields,
    }  # fmt: skip
    config = ModelConfig(**values)
    torch.manual_seed(seed)
    backbone = load_backbone(config.backbone, "none")
    if config.language_model == "none":
        return TIMAM(config, num_identities, word_tokenizer(captions or [WORDS, WORDS]), backbone, None)
    tokenizer = word_piece_tokenizer()
    return TIMAM(config, num_identities, tokenizer, backbone, tiny_language_model(len(tokenizer), dropout))


@pytest.fixture
def tiny_model() -> Callable:
    return build_tiny
