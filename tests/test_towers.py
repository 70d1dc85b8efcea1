"""Encoders of transformers: equal to transformers' own, rebuilt without the hub, refused before any download."""

import functools
import json
import shutil
from dataclasses import asdict

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
import transformers
from conftest import Trap, word_piece_tokenizer
from hub import Repository, pretend_online, running_hub
from layouts import tiny_config
from running import interrupted
from safetensors.torch import load_file, save_file

from timam import training
from timam.config import Config, ModelConfig
from timam.data import load_dataset
from timam.evaluation import embed_split, evaluate
from timam.images import normalize
from timam.job import Job
from timam.learner import Learner, build_optimizers
from timam.models import TIMAM, WeightsError, towers
from timam.models.weights import load_backbone, load_language_model, pair_settings
from timam.objective import train_step
from timam.run import Run
from timam.stores import StoredSplit, open_pixels, open_word_states
from timam.training import fit

TOKENIZER = word_piece_tokenizer()
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEEN = {**WIDE, "image_size": 32, "patch_size": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
READ = {**WIDE, **IDS, "vocab_size": len(TOKENIZER), "max_position_embeddings": 20}
DISTILLED = {"vocab_size": len(TOKENIZER), "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
CONFIGS = {
    "clip": transformers.CLIPConfig(text_config=READ, vision_config=SEEN, projection_dim=12),
    "siglip": transformers.SiglipConfig(text_config={**READ, "projection_size": 16}, vision_config=SEEN),
    "vit": transformers.ViTConfig(**SEEN),
    "dinov2": transformers.Dinov2Config(**SEEN),
    "dinov2_with_registers": transformers.Dinov2WithRegistersConfig(**SEEN),
    "bert": transformers.BertConfig(**READ),
    "distilbert": transformers.DistilBertConfig(**DISTILLED),
    "roberta": transformers.RobertaConfig(**READ),
    "mpnet": transformers.MPNetConfig(**READ | {"pad_token_id": 1}),
    "modernbert": transformers.ModernBertConfig(**READ, cls_token_id=2, sep_token_id=3),
    "fnet": transformers.FNetConfig(**READ),
    "bart": transformers.BartConfig(vocab_size=len(TOKENIZER), d_model=16, encoder_layers=1, decoder_layers=1, **IDS),
}
PAIRS = ("clip", "siglip")
IMAGES = (*PAIRS, "vit", "dinov2", "dinov2_with_registers")
TEXTS = (*PAIRS, "bert", "distilbert", "roberta", "mpnet", "modernbert")
CAPTIONS = ["a man in a red hat", "the woman", "black boots and a white coat"]
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """checkpoint(kind) -> (folder in the hub's form, the transformers model)."""

    @functools.cache
    def checkpoint(kind: str):
        torch.manual_seed(0)
        folder, model = tmp_path_factory.mktemp(kind), transformers.AutoModel.from_config(CONFIGS[kind]).eval()
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        return folder, model

    return checkpoint


def settings(checkpoints, image: str = "", text: str = "", **fields) -> ModelConfig:
    return ModelConfig(
        **{
            "backbone": str(checkpoints(image)[0]) if image else "squeezenet1_1",
            "backbone_weights": "IMAGENET1K_V1" if image else "none",
            "language_model": str(checkpoints(text)[0]) if text else "none",
            "image_height": 48, "image_width": 32, "max_tokens": 16, "lstm_hidden": 4, "embedding_dim": 12,
            "discriminator_hidden": 4, **fields,
        }
    )  # fmt: skip


HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def own_pixels(kind: str, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    """The pictures as the architecture's published processor normalises them."""
    statistics = {"clip": CLIP, "siglip": (HALF, HALF), "vit": (HALF, HALF)}
    return TF.normalize(pixels / 255, *statistics.get(kind, IMAGENET))


# -- equal to transformers' own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_as_it_is_gives_transformers_own_embeddings(checkpoints, kind):
    folder, own = checkpoints(kind)
    model = TIMAM.pretrained(pair_settings(str(folder)), 3, [])
    # SigLIP is trained on sentences padded to full length, and has no mask for padding.
    padding = {"padding": "max_length", "max_length": 20} if kind == "siglip" else {"padding": True}
    texts = TOKENIZER(CAPTIONS, return_tensors="pt", **padding)
    mask = {} if kind == "siglip" else {"attention_mask": texts["attention_mask"]}
    with torch.no_grad():
        images = own.get_image_features(pixel_values=own_pixels(kind)).pooler_output
        sentences = own.get_text_features(input_ids=texts["input_ids"], **mask).pooler_output
    assert images.std() > 0.1 < sentences.std()
    torch.testing.assert_close(model.encode_images(list(PIXELS)), images, **CLOSE)
    torch.testing.assert_close(model.encode_texts(CAPTIONS), sentences, **CLOSE)
    torch.testing.assert_close(model.encode_texts(CAPTIONS[1:2]), sentences[1:2], **CLOSE)  # whatever its batch


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_tower_is_transformers_own_at_its_size_and_interpolated_to_another(checkpoints, kind):
    folder, own = checkpoints(kind)
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
    folder = shutil.copytree(checkpoints("vit")[0], tmp_path / "vit")

    def load(std):
        content = {"image_mean": [0.1, 0.2, 0.3], "image_std": std}
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
        return load_backbone(str(folder), "IMAGENET1K_V1").eval()

    with torch.no_grad():
        pixels = TF.normalize(PIXELS / 255, [0.1, 0.2, 0.3], [1, 2, 3])
        expected = checkpoints("vit")[1](pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(load([1, 2, 3])(normalize(PIXELS)), expected, **CLOSE)
    for impossible in ([1, 0, 1], [1, 1], ["a", "b", "c"]):
        with pytest.raises(WeightsError, match="could not load the backbone"):
            load(impossible)


@pytest.mark.parametrize("kind", TEXTS)
def test_pooled_text_is_the_last_tokens_state_or_the_mean(checkpoints, kind):
    model = TIMAM.pretrained(settings(checkpoints, "", kind, text_head="pooled"), 3, []).eval()
    ids, mask = model.tokenize(CAPTIONS)
    with torch.no_grad():
        states = model.text_encoder.word_states(ids, mask)
        rows = [row[: int(n)] for row, n in zip(states, mask.sum(dim=1), strict=True)]
        pooled = torch.stack([row[-1] if kind in PAIRS else row.mean(dim=0) for row in rows])
        torch.testing.assert_close(model.encode_texts(CAPTIONS), model.text_encoder.projection(pooled))
    assert not hasattr(model.text_encoder, "lstm")


def test_evaluate_measures_a_pair_without_training(checkpoints, people, call):
    folder = checkpoints("clip")[0]
    found = call("evaluate", "--pretrained", folder, "--dataset", "cuhk-pedes", "--root", people, "--json")
    split = load_dataset("cuhk-pedes", people).split("test")
    model = TIMAM.pretrained(pair_settings(str(folder)), 3, [])  # as transformers' own, by the test above
    expected = evaluate(embed_split(model, StoredSplit(split, open_pixels(split.image_paths, 32, 32))))
    assert ({"dataset": "cuhk-pedes", "split": "test"} | expected).items() <= json.loads(found.out).items()


# -- in training, saved, rebuilt -------------------------------------------------------------------------------------

COMBINATIONS = [
    *((kind, kind, {"projection": "pretrained", "text_head": "pooled"}) for kind in PAIRS),
    *((kind, "bert", {}) for kind in IMAGES),
    *(("", kind, {}) for kind in TEXTS),
    *(("", kind, {"text_head": "pooled"}) for kind in ("modernbert", "clip")),
    ("clip", "", {"text_head": "pooled", "projection": "pretrained"}),
]


@pytest.fixture(params=COMBINATIONS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2].get('text_head', 'lstm')}")
def model(request, checkpoints, tmp_path, monkeypatch) -> TIMAM:
    image, text, fields = request.param
    monkeypatch.setenv("TIMAM_CACHE", str(tmp_path / "cache"))
    width = 16 if image == text == "siglip" else 12
    model = TIMAM.pretrained(settings(checkpoints, image, text, embedding_dim=width, **fields), 3, CAPTIONS * 2)
    model.text_encoder.freeze()
    return model.train()


def test_trained_on_stored_words_saved_and_rebuilt_without_the_checkpoint(model, tmp_path, monkeypatch):
    before = {n: p.clone() for n, p in model.named_parameters()}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    text = dict(zip(("words", "attention_mask"), model.tokenize(CAPTIONS), strict=True))
    if not model.text_encoder.learns_words:
        states, mask = open_word_states(model, CAPTIONS, progress=False).gather(np.arange(3))
        assert torch.equal(mask, text["attention_mask"])
        text = {"words": states, "attention_mask": mask}
        assert frozen
    learner = Learner(model, build_optimizers(model, Config().train), {})
    pictures = F.interpolate(normalize(PIXELS), (48, 32))
    train_step(learner, {"images": pictures, **text}, torch.arange(3), Config(), Job("no"))
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


WHOLE = {"projection": "pretrained", "text_head": "pooled"}
RUNS = [
    ("clip", "clip", WHOLE), ("siglip", "siglip", WHOLE | {"embedding_dim": 16}), ("vit", "bert", {}),
    ("dinov2", "distilbert", {}), ("dinov2_with_registers", "roberta", {}), ("clip", "modernbert", {}),
    ("siglip", "mpnet", {"text_head": "pooled"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "text", "fields"),
    [pytest.param(*run, marks=() if run in RUNS[:3:2] else pytest.mark.slow, id="-".join(run[:2])) for run in RUNS],
)
def test_a_run_is_resumed_to_the_same_bits(checkpoints, people, tmp_path, monkeypatch, image, text, fields):
    """Two epochs of two steps on stored block outputs, the first on stored word states as well."""
    model = asdict(settings(checkpoints, image, text, **fields))
    config = tiny_config(
        people, *(f"model.{key}={value}" for key, value in model.items()), "train.epochs=2", "train.max_steps=2",
        "train.unfreeze_epoch=2", "train.frozen_blocks=2", "train.language_model_lr=1e-3", "train.warmup_epochs=0",
    )  # fmt: skip
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    stored, validate = [], training._validate

    def spy(learner_model, data):
        stored.append((data.train.words is not None, data.train.blocks is not None))
        return validate(learner_model, data)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_validate", spy)
        fit(config, whole.folder, progress=False)
    assert stored == [(True, True), (False, True)]
    for after in (1, 2):  # stops in the first epoch, then in the second
        interrupted(config, parts.folder, after)
    fit(config, parts.folder, resume=True, progress=False)
    left, right = (load_file(run.last / "model.safetensors") for run in (whole, parts))
    assert [n for n in left if not torch.equal(left[n], right[n])] == []
    found, expected = parts.test_embeddings(), whole.test_embeddings()
    assert all(torch.equal(vars(found)[key], vars(expected)[key]) for key in vars(found))


def test_a_projection_is_kept_or_replaced(checkpoints):
    _, own = checkpoints("clip")
    kept = TIMAM.pretrained(settings(checkpoints, "clip", "clip", text_head="pooled", projection="pretrained"), 3, [])
    assert torch.equal(kept.image_encoder.projection.weight, own.visual_projection.weight)
    assert torch.equal(kept.text_encoder.projection.weight, own.text_projection.weight)
    new = TIMAM.pretrained(settings(checkpoints, "clip", "clip", text_head="pooled", embedding_dim=7), 3, [])
    assert new.image_encoder.projection.weight.shape == new.text_encoder.projection.weight.shape == (7, 16)
    lstm = TIMAM.pretrained(settings(checkpoints, "clip", "clip", projection="pretrained"), 3, [])
    assert lstm.text_encoder.projection.in_features == 8  # of the LSTM, which no pretrained projection knows


def test_a_tower_that_was_saved_alone(tmp_path):
    config = CONFIGS["clip"]
    vision = transformers.CLIPVisionModel(config.vision_config).eval()
    text = transformers.CLIPTextModel(config.text_config)
    vision.save_pretrained(tmp_path / "image")
    text.save_pretrained(tmp_path / "text")
    whole = transformers.CLIPVisionModelWithProjection
    if len(whole.from_pretrained(tmp_path / "image", output_loading_info=True)[1]["missing_keys"]) > 1:
        pytest.skip("this version of transformers (5.17, for example) does not read it either")
    tower = load_backbone(str(tmp_path / "image"), "IMAGENET1K_V1").eval()
    assert tower.projection is None
    with torch.no_grad():
        expected = vision(pixel_values=own_pixels("clip")).pooler_output
        torch.testing.assert_close(tower(normalize(PIXELS)), expected, **CLOSE)
    words, projection = towers.split_text(load_language_model(str(tmp_path / "text"), True))
    assert projection is None
    assert torch.equal(words.get_input_embeddings().weight, text.get_input_embeddings().weight)


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (load_backbone, "bert", "model.backbone = .*a model of the type bert.*clip_vision_model.*dinov2"),
        (load_language_model, "vit", "model.language_model = .*the type vit, which reads no text"),
        (load_language_model, "bart", "model.language_model = .*has a decoder"),
        *((load_backbone, name, "no such folder") for name in ("/nowhere/clip", "~/clip", "runs/mine/clip")),
    ],
)
def test_another_kind_is_refused_before_its_weights_are_read(checkpoints, tmp_path, load, kind, message):
    folder = kind
    if kind in CONFIGS:
        folder = shutil.copytree(checkpoints(kind)[0], tmp_path / "checkpoint")
        (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        load(str(folder), "IMAGENET1K_V1")


def test_a_language_model_that_cannot_be_saved_or_reads_its_padding_is_refused(checkpoints, monkeypatch):
    with pytest.raises(ValueError, match=r"fnet.*reads its padding"):
        load_language_model(str(checkpoints("fnet")[0]), True)
    model = transformers.AutoModel.from_config(CONFIGS["bert"])
    model.encoder.layer[1].attention.self.query.weight = model.encoder.layer[0].attention.self.query.weight
    monkeypatch.setattr(towers, "from_config", lambda config: model)
    with pytest.raises(ValueError, match="share memory, so it cannot be saved"):
        load_language_model(str(checkpoints("bert")[0]), False)


@pytest.fixture
def hub(checkpoints, monkeypatch, tmp_path):
    """A stand-in of the hub that holds somebody/clip and the others."""
    with running_hub() as found:
        pretend_online(monkeypatch, found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: False)
        for kind in (*IMAGES, *TEXTS):
            files = {p.name: p.read_bytes() for p in checkpoints(kind)[0].iterdir()}
            found.repositories[f"somebody/{kind}"] = Repository(files=files, commit="1" * 40)
        yield found


@pytest.mark.parametrize(("image", "text", "fields"), RUNS, ids=lambda v: v if isinstance(v, str) else "")
def test_towers_from_the_hub_are_those_of_a_folder(checkpoints, hub, image, text, fields):
    names = {"backbone": f"somebody/{image}", "language_model": f"somebody/{text}"}
    made = []
    for config in (settings(checkpoints, image, text, **fields, **names), settings(checkpoints, image, text, **fields)):
        torch.manual_seed(0)
        made.append(TIMAM.pretrained(config, 3, []))
    assert torch.equal(*(model.encode_texts(CAPTIONS) for model in made))
    assert torch.equal(*(model.encode_images(list(PIXELS)) for model in made))
    asked = {r.rpartition("/resolve/")[0] for r in hub.requests if r.endswith("model.safetensors")}
    assert asked == {f"{verb} /{name}" for verb in ("HEAD", "GET") for name in names.values()}


@pytest.mark.parametrize(
    ("image", "text", "fields", "message"),
    [
        ("clip", "clip", {"projection": "pretrained", "embedding_dim": 16}, "embedding_dim = 16: .* gives 12"),
        ("clip", "clip", {"max_tokens": 21}, "max_tokens = 21: .* reads at most 20"),
        ("clip", "roberta", {"max_tokens": 20}, "max_tokens = 20: .* reads at most 19"),  # counts from behind id 0
        ("clip", "mpnet", {"max_tokens": 20}, "max_tokens = 20: .* reads at most 18"),  # from behind id 1
        ("vit", "bert", {"projection": "pretrained"}, "neither encoder has a projection"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_downloaded(checkpoints, hub, image, text, fields, message):
    names = {"backbone": f"somebody/{image}", "language_model": f"somebody/{text}", "backbone_weights": "IMAGENET1K_V1"}
    with pytest.raises(ValueError, match=message):
        TIMAM.pretrained(settings(checkpoints, **{**names, **fields}), 3, [])
    assert not [request for request in hub.requests if request.endswith("model.safetensors")]


# -- local weights of a backbone -------------------------------------------------------------------------------------


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
    save = save_file if name.endswith("safetensors") else torch.save
    save(wrap(state), tmp_path / name)
    loaded = load_backbone("resnet18", str(tmp_path / name)).state_dict()
    taken = [k for k in state if not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    assert all(torch.equal(loaded[k], state[k]) for k in taken)
    assert loaded["fc.weight"].shape == (1000, 512)


def test_local_weights_of_a_tower(checkpoints, tmp_path):
    folder, own = checkpoints("vit")
    save_file({f"vit.{k}": 2 * v for k, v in own.state_dict().items()}, tmp_path / "w.safetensors")
    tower = load_backbone(str(folder), str(tmp_path / "w.safetensors"))
    assert torch.equal(tower.model.layernorm.weight, 2 * own.layernorm.weight)


def test_local_weights_that_do_not_fit_or_would_run_code_are_refused(tmp_path):
    state = load_backbone("resnet18", "none").state_dict()
    save_file({**state, "layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other.*not fit resnet18: [\s\S]*size mismatch for layer1.0.conv1.weight"):
        load_backbone("resnet18", str(tmp_path / "other.safetensors"))
    torch.save({"conv1.weight": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    for name in ("trap.pth", "absent.pth"):
        with pytest.raises(WeightsError, match=f"{name}: not readable"):
            load_backbone("resnet18", str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


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
