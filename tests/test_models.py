"""Encoders, discriminator and the joint model: shapes, padding, freezing, and what a saved model needs and refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import torchvision
from accelerate import init_empty_weights
from conftest import WORDS, tiny_language_model
from PIL import Image
from torch import nn

from timam import TIMAM
from timam.images import normalize
from timam.models import ImageEncoder, TextEncoder
from timam.models.batching import padding_mask
from timam.models.image_encoder import blocks_of, feature_width, strip_head
from timam.models.joint import IMAGE, TEXT
from timam.models.text_encoder import WordEmbeddings
from timam.models.weights import build_backbone, load_backbone
from timam_lab.centering import centered

CAPTIONS = ["a man in a red hat", "the woman", "black boots and a white coat with a green bag", "skirt", "a hat", "man"]

# The channels of the last feature map. One backbone of each family: its sizes share their code.
WIDTHS = {
    "alexnet": 256, "convnext_tiny": 768, "densenet121": 1024, "efficientnet_b0": 1280, "googlenet": 1024,
    "inception_v3": 2048, "maxvit_t": 512, "mnasnet0_5": 1280, "mobilenet_v2": 1280, "mobilenet_v3_large": 960,
    "regnet_y_400mf": 440, "resnet50": 2048, "shufflenet_v2_x0_5": 1024, "squeezenet1_0": 512, "swin_t": 768,
    "swin_v2_t": 768, "vgg11": 512, "vit_b_16": 768,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_every_backbone_of_torchvision_gives_features(name):
    with init_empty_weights(include_buffers=False):  # run without values, at its natural size
        backbone = load_backbone(name, "none")
    size = 299 if name == "inception_v3" else 224
    assert feature_width(strip_head(backbone), size, size) == WIDTHS[name]
    assert not [m for m in backbone.modules() if getattr(m, "out_features", 0) == 1000]


def test_unknown_backbones_are_refused():
    with pytest.raises(ValueError, match="Conv2d has no linear layer to remove in fc, classifier, heads, head"):
        ImageEncoder(nn.Conv2d(3, 4, 3), 64, 32, 5)
    with torch.device("meta"):
        backbone = load_backbone("vit_b_16", "none")
    with pytest.raises(ValueError, match="VisionTransformer does not take pictures of 64x32 pixels"):
        ImageEncoder(backbone, 64, 32, 5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "resnet50", "vit_b_16"])
def test_saved_backbone_has_the_architecture_of_its_weights(name, monkeypatch):
    # GoogLeNet's and Inception's published weights rescale the input: a setting that no state dict holds.
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **options: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
    for weights in torchvision.models.get_model_weights(name).__members__:
        with torch.device("meta"):
            loaded, rebuilt = load_backbone(name, weights), build_backbone(name, weights)
            assert not getattr(build_backbone(name, "none"), "transform_input", False)
        assert getattr(loaded, "transform_input", None) == getattr(rebuilt, "transform_input", None)
        # Inception: without its auxiliary head; a vision transformer: with positions for pictures of its weights' size.
        shapes = [{n: t.shape for n, t in each.state_dict().items()} for each in (loaded, rebuilt)]
        assert shapes[0] == shapes[1]


def text_encoder(summary: str = "max", learned: bool = False) -> TextEncoder:
    torch.manual_seed(0)
    words = WordEmbeddings(40, 16) if learned else tiny_language_model(40)
    return TextEncoder(words, 16, 8, 5, summary).eval()


def ids_and_mask(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = padding_mask(lengths)
    return torch.randint(2, 40, mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


both_summaries = pytest.mark.parametrize("summary", ["max", "last"])
both_kinds = pytest.mark.parametrize("learned", [False, True], ids=["language model", "learned words"])


@both_summaries
@both_kinds
@pytest.mark.parametrize("normalized", [False, True])
def test_an_embedding_is_of_torchs_lstm_whatever_the_padding_and_the_rest_of_the_batch(summary, learned, normalized):
    encoder, (ids, mask) = text_encoder(summary, learned), ids_and_mask(3, 9, 1, 6)
    encoder.normalizes_words = normalized
    pooled = []
    with torch.no_grad():
        for row, length in zip(ids, (3, 9, 1, 6), strict=True):
            states = encoder.word_states(row[None, :length], mask.new_ones(1, length))
            if normalized:
                variance = states.var(dim=2, correction=0, keepdim=True)
                states = (states - states.mean(dim=2, keepdim=True)) / (variance + 1e-5).sqrt()
            outputs, (last, _) = encoder.lstm(states)
            pooled.append(outputs.amax(dim=1) if summary == "max" else torch.cat([last[0], last[1]], dim=1))
        expected = encoder.projection(torch.cat(pooled))
        for more in (0, 7):
            padded = (nn.functional.pad(x, (0, more)) for x in (ids, mask))
            torch.testing.assert_close(encoder(*padded), expected, rtol=1e-5, atol=1e-6)


@both_summaries
def test_packed_and_padded_sentences_give_the_same_states(summary):
    # A GPU reads packed sentences, a CPU padded ones.
    encoder, (_, mask) = text_encoder(summary), ids_and_mask(3, 9, 1, 6)
    states = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(0))
    results = [encoder._packed(states, mask, None), encoder._padded(states, mask)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), list(encoder.lstm.parameters())) for result in results]
    torch.testing.assert_close(*gradients)


def test_conditional_discriminator_starts_as_the_other_one(tiny_model):
    plain, conditional = tiny_model(), tiny_model(discriminator_conditional=True)
    rows, directions = torch.randn(2, 6, 16)
    torch.testing.assert_close(conditional.discriminator(rows, directions), plain.discriminator(rows))
    torch.testing.assert_close(conditional.class_weights, plain.class_weights)  # runs of one seed start alike
    assert plain.discriminator(rows[:1]).shape == (1,)  # a batch of one keeps its axis


def test_centered_by_hand_and_refused_without_means(tiny_model):
    model = tiny_model(embedding_dim=2)
    with pytest.raises(ValueError, match="no means of its modalities"):
        centered(model, torch.ones(1, 2), IMAGE)
    model.modality_means = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # at unit length (0.6, 0.8), (0, 1)
    images = torch.tensor([[-0.4, 0.8], [-1.0, 1.0]]) / torch.tensor([[0.8**0.5], [2**0.5]])
    torch.testing.assert_close(centered(model, rows, IMAGE), images)
    torch.testing.assert_close(centered(model, rows[1:], TEXT), torch.tensor([[0.0, 1.0]]))


@both_kinds
def test_tokenize_pads_truncates_and_masks(tiny_model, learned):
    captions = [f"{WORDS} {WORDS.upper()} zebra"]
    model = tiny_model(language_model="none" if learned else "tiny-bert", captions=captions, max_tokens=6)
    ids, mask = model.tokenize(["a man", "a man in a red hat and a coat", "HAT", "\u200b", "zebra"])
    assert ids.shape == mask.shape == (5, 6)
    assert ids.dtype == mask.dtype == torch.int64
    assert (ids == model.tokenizer.pad_token_id).equal(mask == 0)
    assert (mask.diff(dim=1) <= 0).all()  # on the right
    assert mask.sum(dim=1).tolist() == ([2, 6, 1, 1, 1] if learned else [4, 6, 3, 2, 6])  # [CLS] and [SEP] count
    if learned:
        assert ids[4, 0] == model.tokenizer.unk_token_id  # the captions have it once only
        vectors = model.text_encoder.language_model.embedding.weight
        assert vectors.any(dim=1).tolist() == [False, *[True] * (len(WORDS.split()) + 1)]  # the padding's is zero
    else:
        assert ids[1, -1] == model.tokenizer.sep_token_id  # truncation keeps the end marker
    assert torch.equal(model.tokenize(["hat"])[0], model.tokenize(["HAT"])[0])


def test_caption_without_any_token_is_one_unknown_word(tiny_model):
    # The zero-width space is cleaned away, and this tokenizer adds no special tokens.
    model = tiny_model()
    model.tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    ids, mask = model.tokenize(["\u200b", "a man"])
    assert ids[0].tolist() == [model.tokenizer.unk_token_id, model.tokenizer.pad_token_id]
    assert mask.tolist() == [[1, 0], [1, 1]]


@pytest.fixture
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (64, 32, 3), dtype=np.uint8)) for _ in range(5)]


@both_kinds
def test_encoding_is_forward_in_eval_mode_and_leaves_the_mode(tiny_model, pictures, learned):
    model = tiny_model(language_model="none" if learned else "tiny-bert").train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    encoded = model.encode_images(pictures), model.encode_texts(CAPTIONS)
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())  # batch statistics stay
    assert (model.training, encoded[0].requires_grad, encoded[0].dtype) == (True, False, torch.float32)
    model.eval()
    images = normalize(torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]))
    ids, mask = model.tokenize(CAPTIONS)
    with torch.no_grad():
        for words in (ids, model.text_encoder.word_states(ids, mask)):
            torch.testing.assert_close(model(images, words, mask), encoded)


def test_sentences_of_similar_lengths_share_a_batch_and_keep_their_places(tiny_model, monkeypatch):
    model, widths, tokenize = tiny_model(max_tokens=32), [], TIMAM.tokenize
    monkeypatch.setattr(TIMAM, "tokenize", lambda self, texts: widths.append(len(texts[0])) or tokenize(self, texts))
    texts = ["a man in a long red coat with a hood", "a man", "a woman in a blue coat", "a bag"]
    found = model.encode_texts(pd.Series(texts, index=[2, 0, 1, 3]), batch_size=1)  # by position, not by label
    assert widths == sorted(map(len, texts))
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row[None], model.encode_texts([text]))


def test_a_sentence_that_is_cut_gives_a_warning(tiny_model):
    model, eight = tiny_model(max_tokens=10), "a man in a red hat and a"  # eight words and two special tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model.encode_texts([eight])
    with pytest.warns(UserWarning, match=r"1 of 2 sentences are longer than the 10 tokens.*'a man in a r"):
        found = model.encode_texts(["a man", f"{eight} white bag"])
    torch.testing.assert_close(found[1:], expected)


def test_an_unreadable_picture_is_named_and_its_row_is_nan(tiny_model, pictures, tmp_path):
    unreadable = {}
    found = tiny_model().encode_images([pictures[0], tmp_path / "nobody.png", pictures[1]], unreadable=unreadable)
    assert found.isnan().all(dim=1).tolist() == [False, True, False]
    assert list(unreadable) == [1]


def test_wrong_arguments_are_refused_and_nothing_gives_nothing(tiny_model):
    model = tiny_model()
    for texts, message in [("a man", "list of"), (["a man", "  \n"], r"texts\[1\] = '  "), ([3], r"texts\[0\] = 3")]:
        with pytest.raises(ValueError, match=message):
            model.encode_texts(texts)
    assert model.encode_images([]).shape == model.encode_texts([]).shape == (0, 16)
    with pytest.raises(ValueError, match="expected a list of pictures, found one path"):
        model.encode_images("a.jpg")


def test_saved_model_gives_the_same_bits(tiny_model, pictures, tmp_path):
    """The parts that the pairs in test_towers.py do not have."""
    options = {"lstm_summary": "last", "shared_classifier": False, "discriminator_conditional": True}
    model = tiny_model(captions=CAPTIONS, language_model="none", **options)
    model.train()(torch.randn(4, 3, 64, 32), *model.tokenize(CAPTIONS[:4]))  # moves the batch statistics
    model.save_pretrained(tmp_path / "saved")
    again = TIMAM.from_pretrained(tmp_path / "saved")
    assert again.model_config == model.model_config
    assert not any(m.training for m in again.modules())
    assert torch.equal(again.encode_images(pictures), model.encode_images(pictures))
    assert torch.equal(again.encode_texts(CAPTIONS), model.encode_texts(CAPTIONS))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["runs/mine/checkpoints/bset", "/nowhere/run", "~/nowhere", "./nowhere"])
def test_a_path_that_is_no_folder_is_told_as_such(name, monkeypatch):
    monkeypatch.setattr("timam.models.saving.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
        TIMAM.from_pretrained(name)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 9), ("mobilenet_v2", 19), ("squeezenet1_1", 13)])
def test_frozen_blocks_and_the_rest_are_the_backbone(name, count):
    """ResNet-18: stem and 8 residual blocks; MobileNetV2: 19 layers; SqueezeNet 1.1: 13 layers of `features`."""
    torch.manual_seed(0)
    encoder = ImageEncoder(load_backbone(name, "none"), 64, 32, 8).eval()
    images = torch.randn(2, 3, 64, 32)
    expected, names = encoder(images), [n for n, _ in encoder.named_parameters()]
    assert len(blocks_of(encoder.backbone)) == count
    for blocks in (1, count, 3):
        encoder.freeze_blocks(blocks)
        torch.testing.assert_close(encoder(images), expected)
        torch.testing.assert_close(encoder(encoder.block_outputs(images)), expected)
    assert [n for n, _ in encoder.named_parameters()] == names  # nothing is registered twice
    with pytest.raises(ValueError, match=f"train.frozen_blocks = {count + 1}: .* has {count} blocks"):
        encoder.freeze_blocks(count + 1)
    with pytest.raises(ValueError, match="the blocks of ShuffleNetV2 are not known"):
        ImageEncoder(load_backbone("shufflenet_v2_x0_5", "none"), 64, 32, 8).freeze_blocks(1)


def test_frozen_blocks_neither_learn_nor_change_their_statistics():
    encoder = ImageEncoder(load_backbone("resnet18", "none"), 64, 32, 8).train()
    encoder.freeze_blocks(3)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(torch.randn(4, 3, 64, 32)).square().sum().backward()
    torch.optim.AdamW(encoder.parameters(), weight_decay=0.5).step()
    same = {name for name, value in encoder.state_dict().items() if torch.equal(value, before[name])}
    assert same == {n for n in before if n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))}
