"""timam.objective: who trains whom in a step, and with which gradients."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch

from timam.config import Config, LossConfig, TrainConfig
from timam.job import Job
from timam.learner import Learner, build_optimizers
from timam.losses import (
    cmpm_loss,
    discriminator_loss,
    infonce_loss,
    norm_softmax_loss,
    sdm_loss,
    triplet_loss,
)
from timam.models import TIMAM
from timam.objective import TERMS, Inputs, train_step

LABELS = torch.tensor([0, 1, 2, 2, 3, 0])
PLAIN_SGD = TrainConfig(
    image_optimizer="sgd", text_optimizer="sgd", discriminator_optimizer="sgd", image_lr=0.1, text_lr=0.1,
    language_model_lr=0.1, discriminator_lr=0.1, weight_decay=0.0,
)  # fmt: skip
ENCODERS = ("image_encoder", "text_encoder", "class_")


def batch_of(model: TIMAM) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images = torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    captions = ["a man", "the woman in a red dress", "black boots", "white shoes and a hat", "a bag", "blue jacket"]
    token_ids, mask = model.tokenize(captions)
    return images, {"token_ids": token_ids, "attention_mask": mask}


def still(model: TIMAM) -> TIMAM:
    """The same model with dropout off, so that two forward passes are alike; batch normalisation still trains."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def step(model: TIMAM, loss: LossConfig, recorders: dict[str, Any] | None = None, **settings: Any):
    """One training step; returns its terms. `recorders` stand in for the model's own optimizers."""
    train = dataclasses.replace(PLAIN_SGD, **settings)
    learner = Learner(model, {**build_optimizers(model, train), **(recorders or {})}, {})
    model.train()
    return train_step(learner, Inputs(*batch_of(model), LABELS), Config(loss=loss, train=train), Job("no"))


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_reads_nothing_back_from_the_device(stored, tiny_model, monkeypatch):
    """On a GPU each such read would wait for all queued work."""
    model = tiny_model().train()
    images, text = batch_of(model)
    text["lengths"] = text["attention_mask"].sum(dim=1)
    if stored:
        text["word_states"] = model.text_encoder.word_states(text.pop("token_ids"), text["attention_mask"]).detach()
    config, job = Config(), Job("no")
    learner = Learner(model, build_optimizers(model, config.train), {})
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    train_step(learner, Inputs(images, text, LABELS), config, job)
    with pytest.raises(TypeError, match="not callable"):  # the test notices a read: without the lengths there is one
        train_step(learner, Inputs(images, {**text, "lengths": None}, LABELS), config, job)


def test_lengths_from_the_host_change_nothing(tiny_model):
    model = tiny_model().eval()
    images, text = batch_of(model)
    lengths = text["attention_mask"].sum(dim=1)
    assert len(lengths.unique()) > 1
    for with_them, without in zip(model(images, **text, lengths=lengths), model(images, **text), strict=True):
        assert torch.equal(with_them, without)


def parameters(model: TIMAM, *prefixes: str) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith(prefixes)}


def moved(before: dict[str, torch.Tensor], model: TIMAM) -> set[str]:
    now = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


def assert_same_parameters(first: TIMAM, second: TIMAM, *prefixes: str, **tolerance: float) -> None:
    others = parameters(second, *prefixes)
    for name, value in parameters(first, *prefixes).items():
        torch.testing.assert_close(value, others[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


class Recorder:
    """An optimizer that moves nothing and keeps the gradients that it was given."""

    def __init__(self, model: TIMAM, prefixes: tuple[str, ...]) -> None:
        self.named = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
        self.param_groups = [{"params": list(self.named.values())}]
        self.gradients: list[dict[str, torch.Tensor | None]] = []

    def step(self) -> None:
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in self.named.items()})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.named.values():
            p.grad = None


def recorders(model: TIMAM) -> dict[str, Recorder]:
    return {
        "image": Recorder(model, ("image_encoder",)),
        "text": Recorder(model, ("text_encoder", "class_")),
        "discriminator": Recorder(model, ("discriminator",)),
    }


def test_discriminators_move_follows_its_own_loss_alone(tiny_model):
    """The discriminator gets the gradient of L_D on detached embeddings, once; the encoders get nothing from it."""
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    terms = step(model, LossConfig(label_smoothing=0.1), recorders=played)
    assert len(played["discriminator"].gradients) == 1  # moved once: the encoders' move does not move it
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    d = reference.discriminator
    loss = discriminator_loss(d(image_embeddings.detach()), d(text_embeddings.detach()), 0.1)
    loss.backward()
    torch.testing.assert_close(terms["discriminator"], loss.detach())
    for name, p in reference.named_parameters():
        if name.startswith("discriminator"):
            torch.testing.assert_close(played["discriminator"].gradients[0][name], p.grad)


def test_discriminator_loss_moves_only_the_discriminator(tiny_model):
    model = tiny_model()
    before = parameters(model, "")
    nothing = LossConfig(identification_weight=0, matching_weight=0, adversarial_weight=0)
    step(model, nothing)
    changed = moved(before, model)
    assert changed == {n for n in before if n.startswith("discriminator")}


def test_encoders_adversarial_loss_leaves_the_discriminator_alone(tiny_model):
    """With its own optimizer standing still, nothing of the discriminator changes, and no gradient is left on it."""
    model = tiny_model()
    before = parameters(model, "")
    frozen = Recorder(model, ("discriminator",))
    step(model, LossConfig(identification_weight=0, matching_weight=0), recorders={"discriminator": frozen})
    changed = moved(before, model)
    assert not any(name.startswith("discriminator") for name in changed)
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("text_encoder") for name in changed)
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.requires_grad for p in model.discriminator.parameters())  # it must move in the next step


def test_encoders_play_against_the_discriminator_as_it_now_is(tiny_model):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    terms = step(model, LossConfig())
    reference.train()
    images, text = batch_of(reference)
    with torch.no_grad():
        image_embeddings, text_embeddings = reference(images, **text)
        moved_logits = model.discriminator(image_embeddings), model.discriminator(text_embeddings)
    # the non-saturating form, written out: images are to be taken for text and text for images
    expected = -torch.log(1 - moved_logits[0].sigmoid()).mean() - torch.log(moved_logits[1].sigmoid()).mean()
    torch.testing.assert_close(terms["adversarial"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_weight_zero_moves_the_encoders_as_without_a_discriminator(tiny_model, form):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    terms = step(model, LossConfig(adversarial_weight=0.0, adversarial_form=form))
    assert terms["adversarial"] == 0
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    loss = cmpm_loss(image_embeddings, text_embeddings, LABELS)
    for embeddings in (image_embeddings, text_embeddings):
        loss = loss + norm_softmax_loss(embeddings, reference.class_weights[0], reference.class_bias[0], LABELS)
    loss.backward()
    torch.testing.assert_close(terms["total"], loss.detach())
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if name.startswith(ENCODERS) and p.grad is not None:
                p -= 0.1 * p.grad  # SGD's first step
    assert_same_parameters(model, reference, *ENCODERS, rtol=1e-5, atol=1e-6)
    assert moved(parameters(reference, "discriminator"), model)  # it watches, and learns


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_weights_scale_their_terms_in_the_total(tiny_model, form):
    config = LossConfig(identification_weight=2.0, matching_weight=3.0, adversarial_weight=0.5, adversarial_form=form)
    terms = step(tiny_model(), config)
    expected = (
        2 * (terms["identification_image"] + terms["identification_text"])
        + 3 * terms["matching"]
        + 0.5 * terms["adversarial"]
    )
    torch.testing.assert_close(terms["total"], expected)
    assert not any(t.requires_grad for t in terms.values())
    assert all(t.ndim == 0 for t in terms.values())


def test_discriminators_move_with_penalty_and_unit_length_by_hand(tiny_model):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    step(model, LossConfig(adversarial_input="unit", gradient_penalty=3.0, label_smoothing=0.1), recorders=played)
    reference.train()
    images, text = batch_of(reference)
    with torch.no_grad():
        sides = [e / e.norm(dim=1, keepdim=True) * 4 for e in reference(images, **text)]  # D = 16: the length is 4
    both = torch.cat(sides).requires_grad_()
    logits = reference.discriminator(both)
    (slope,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
    loss = discriminator_loss(logits[:6], logits[6:], 0.1) + 3.0 / 2 * slope.norm(dim=1).square().mean()
    loss.backward()
    for name, p in reference.discriminator.named_parameters():
        torch.testing.assert_close(played["discriminator"].gradients[0][f"discriminator.{name}"], p.grad)


def test_a_discriminator_that_sees_unit_length_does_not_see_the_scale(tiny_model):
    """Ten times as long picture embeddings are the same to it; without the option they are not."""
    for view, same in (("unit", True), ("raw", False)):
        model = still(tiny_model())
        found = []
        for scale in (1.0, 10.0):
            scaled = copy.deepcopy(model)
            with torch.no_grad():
                for p in scaled.image_encoder.projection.parameters():
                    p *= scale
            found.append(float(step(scaled, LossConfig(adversarial_input=view))["discriminator"]))
        assert (found[0] == pytest.approx(found[1], rel=1e-5)) == same


def test_the_discriminator_moves_so_many_times_and_the_encoders_once(tiny_model):
    model = still(tiny_model())
    played = recorders(model)
    step(model, LossConfig(), recorders=played, discriminator_steps=3)
    assert {name: len(player.gradients) for name, player in played.items()} == {
        "image": 1, "text": 1, "discriminator": 3,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_gradient_reversal_equals_gradients_by_hand(tiny_model, weight):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    config = LossConfig(
        identification_weight=0, matching_weight=0, adversarial_weight=weight, adversarial_form="gradient_reversal"
    )
    step(model, config, recorders=played)
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    d = reference.discriminator
    discriminator_loss(d(image_embeddings), d(text_embeddings), config.label_smoothing).backward()
    for name, player in played.items():
        assert len(player.gradients) == 1
        sign = 1.0 if name == "discriminator" else -weight  # the discriminator descends in full, the encoders ascend
        for key, found in player.gradients[0].items():
            plain = reference.get_parameter(key).grad
            if plain is None:
                assert found is None or not found.any()
            else:
                torch.testing.assert_close(found, sign * plain, rtol=1e-4, atol=1e-6)


def test_two_classifiers_learn_from_their_own_modality(tiny_model):
    model = tiny_model(shared_classifier=False)
    played = recorders(model)
    config = LossConfig(matching_weight=0, adversarial_weight=0)
    step(model, config, recorders=played)
    weights = played["text"].gradients[0]["class_weights"]
    assert weights.shape[0] == 2
    assert weights[0].any()
    assert weights[1].any()
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_clipping_bounds_the_gradient_of_each_move(tiny_model, form):
    model = tiny_model()
    played = recorders(model)
    step(model, LossConfig(adversarial_form=form), gradient_clip=0.01, recorders=played)

    def squares(name: str) -> float:
        return sum(float(g.square().sum()) for g in played[name].gradients[0].values() if g is not None)

    for names in (["image", "text"], ["discriminator"]):
        assert math.sqrt(sum(squares(n) for n in names)) == pytest.approx(0.01, rel=1e-3)


def test_step_keeps_no_gradient_between_steps(tiny_model):
    model = tiny_model()
    step(model, LossConfig())
    assert all(p.grad is None for p in model.parameters())


def test_each_weight_of_the_config_belongs_to_a_term():
    """`gradient_penalty` is no weight of the encoders' loss."""
    weights = {f.name for f in dataclasses.fields(LossConfig) if f.name.endswith("_weight")}
    assert {term.weight for term in TERMS} == weights


def test_a_new_term_enters_the_sum_and_the_result(tiny_model, monkeypatch):
    constant = dataclasses.replace(TERMS[0], name="new", compute=lambda batch: batch.images.new_tensor(7.0))
    before = step(still(tiny_model()), LossConfig(matching_weight=2.0))
    monkeypatch.setattr("timam.objective.TERMS", (*TERMS, constant))
    after = step(still(tiny_model()), LossConfig(matching_weight=2.0))
    assert after["new"] == 7
    torch.testing.assert_close(after["total"], before["total"] + 14)


@pytest.mark.parametrize("name", ["cmpm", "sdm", "infonce", "triplet"])
def test_the_matching_loss_is_the_one_that_the_config_names(tiny_model, name):
    model = still(tiny_model()).train()
    config = LossConfig(matching=name, temperature=0.5, margin=0.3, matching_epsilon=1e-6)
    images, texts = copy.deepcopy(model)(batch_of(model)[0], **batch_of(model)[1])
    expected = {
        "cmpm": lambda: cmpm_loss(images, texts, LABELS, 1e-6),
        "sdm": lambda: sdm_loss(images, texts, LABELS, 0.5, 1e-6),
        "infonce": lambda: infonce_loss(images, texts, LABELS, 0.5),
        "triplet": lambda: triplet_loss(images, texts, LABELS, 0.3),
    }
    settings = Config(loss=config, train=PLAIN_SGD)
    learner = Learner.build(model, settings, epoch_steps=1)
    terms = train_step(learner, Inputs(*batch_of(model), LABELS), settings, Job("no"))
    torch.testing.assert_close(terms["matching"], expected[name]().detach())
    learned = not torch.isclose(learner.log_temperature, torch.tensor(0.5).log())
    assert learned == (name == "infonce")
