"""timam.objective: which gradients a step gives to the encoders and to the discriminator."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

from timam import losses
from timam.config import Config, LossConfig, TrainConfig
from timam.job import Job
from timam.learner import Learner, build_optimizers
from timam.models import TIMAM
from timam.objective import TERMS, train_step

LABELS = torch.tensor([0, 1, 2, 2, 3, 0])


def batch_of(model: TIMAM) -> dict[str, Tensor]:
    images = torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(1)).to(model.class_bias.dtype)
    captions = ["a man", "the woman in a red dress", "black boots", "white shoes and a hat", "a bag", "blue jacket"]
    return {"images": images, **dict(zip(("words", "attention_mask"), model.tokenize(captions), strict=True))}


def without_dropout(model: TIMAM) -> TIMAM:
    """The same model in train mode, whose forward passes are all alike."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def taken(learner: Learner, loss: LossConfig, **train) -> dict[str, Tensor]:
    config = Config(loss=loss, train=TrainConfig(**train))
    return train_step(learner, batch_of(learner.model), LABELS, config, Job("no"))


def recorded_step(model: TIMAM, loss: LossConfig, **train) -> tuple[dict[str, Tensor], dict[str, list]]:
    """A step in which only the discriminator moves: its terms, and by optimizer the gradients of each of its steps."""
    parts = {"image": "image_encoder", "text": ("text_encoder", "class_"), "discriminator": "discriminator"}
    optimizers, gradients = {}, {part: [] for part in parts}
    for part, prefixes in parts.items():
        named = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
        optimizers[part] = torch.optim.SGD(named.values(), lr=0.1 if part == "discriminator" else 0.0)

        def record(*_, steps=gradients[part], named=named) -> None:
            steps.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()})

        optimizers[part].register_step_pre_hook(record)
    temperature = torch.nn.Parameter(torch.tensor(math.log(0.7), dtype=torch.float64))
    return taken(Learner(model, optimizers, {}, log_temperature=temperature), loss, **train), gradients


def test_learned_temperature_stays_at_its_bound_and_can_leave_it(tiny_model):
    """CLIP's bound of 0.01. A clamp inside the loss would leave it without a gradient there for good."""
    model = tiny_model()
    temperature = torch.nn.Parameter(torch.tensor(math.log(0.001)))
    optimizers = build_optimizers(model, TrainConfig())
    optimizers["text"].add_param_group({"params": [temperature], "lr": 1e-6, "weight_decay": 0.0})
    learner = Learner(model, optimizers, {}, log_temperature=temperature)
    taken(learner, LossConfig(matching="infonce"))
    assert float(temperature.detach().exp()) == pytest.approx(0.01)
    optimizers["text"].param_groups[-1]["lr"] = 1.0
    taken(learner, LossConfig(matching="infonce"))
    assert float(temperature.detach().exp()) > 0.011  # wrong pairs are near here: a higher one is better


SETTINGS = {"temperature": 0.5, "margin": 0.3, "matching_epsilon": 1e-6}  # InfoNCE's temperature is the learner's
MATCHING = {
    "cmpm": functools.partial(losses.cmpm_loss, epsilon=1e-6),
    "sdm": functools.partial(losses.sdm_loss, temperature=0.5, epsilon=1e-6),
    "infonce": functools.partial(losses.infonce_loss, temperature=0.7),
    "triplet": functools.partial(losses.triplet_loss, margin=0.3),
}


def gradients_of(value: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(value, list(named.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(named, gradients, strict=True))


def reference(model: TIMAM, config: LossConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of `recorded_step`, written out from the paper's game and the config's definitions."""
    images, texts = model(**batch_of(model))
    d = model.discriminator

    def view(e: Tensor) -> Tensor:
        return e / e.norm(dim=1, keepdim=True) * 16**0.5 if config.adversarial_input == "unit" else e  # D = 16

    def judge(embeddings: Tensor, labels: Tensor) -> Tensor:
        first, leaky, last = d.layers
        hidden, rows = leaky(first(embeddings)), model.class_weights.detach().mean(dim=0)[labels]
        if d.condition is None:
            return last(hidden).squeeze(1)
        weights = last.weight + 16**0.5 * rows / rows.norm(dim=1, keepdim=True) @ d.condition.T  # of each pair
        return (hidden * weights).sum(dim=1) + last.bias

    both = torch.cat([view(images), view(texts)]).detach().requires_grad_()
    logits = judge(both, torch.cat([LABELS, LABELS]))
    (slope,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
    discriminator = losses.discriminator_loss(logits[:6], logits[6:], config.label_smoothing)
    penalised = discriminator + config.gradient_penalty / 2 * slope.norm(dim=1).square().mean()
    correct = (logits[:6] > 0).float().mean() / 2 + (logits[6:] <= 0).float().mean() / 2
    own = dict(d.named_parameters(prefix="discriminator"))
    found = gradients_of(penalised, own)
    for name, parameter in own.items():  # the encoders play against the discriminator after its step
        parameter.data -= 0.1 * found[name]
    now = judge(view(images), LABELS), judge(view(texts), LABELS)
    adversarial = losses.encoder_adversarial_loss(*now)
    if config.adversarial_form == "gradient_reversal":
        adversarial = -losses.discriminator_loss(*now, config.label_smoothing)
    identify = functools.partial(losses.norm_softmax_loss, unit_rows=model.model_config.normalized_classifier)
    heads = [(model.class_weights[i], model.class_bias[i]) for i in (0, len(model.class_weights) - 1)]
    discrepancy = {"mmd": losses.mmd_loss, "coral": losses.coral_loss}[config.discrepancy](images, texts)
    terms = {
        "matching": MATCHING[config.matching](images, texts, LABELS),
        "identification_image": identify(images, *heads[0], LABELS),
        "identification_text": identify(texts, *heads[1], LABELS),
        "discrepancy": discrepancy if config.discrepancy_weight else torch.zeros(()),
        "adversarial": adversarial if config.adversarial_weight else torch.zeros(()),
    }
    identification = terms["identification_image"] + terms["identification_text"]
    total = config.matching_weight * terms["matching"] + config.identification_weight * identification
    total = total + config.adversarial_weight * adversarial + config.discrepancy_weight * discrepancy
    found |= gradients_of(total, {n: p for n, p in model.named_parameters() if n not in own})
    return {"total": total, **terms, "discriminator": discriminator, "discriminator_accuracy": correct}, found


CASES = {
    "as in the paper": ({}, {}),
    **{name: ({"matching": name}, {}) for name in ("sdm", "infonce", "triplet")},
    "no adversary": ({"adversarial_weight": 0.0}, {}),
    "weights": ({"matching_weight": 3.0, "identification_weight": 2.0, "adversarial_weight": 0.5}, {}),
    "reversal": ({"adversarial_form": "gradient_reversal", "adversarial_weight": 0.3, "label_smoothing": 0.2}, {}),
    "regularised": ({"adversarial_input": "unit", "gradient_penalty": 3.0}, {}),
    "conditional": ({"adversarial_input": "unit", "gradient_penalty": 3.0}, {"discriminator_conditional": True}),
    "conditional, a classifier each": ({}, {"discriminator_conditional": True, "shared_classifier": False}),
    "MMD": ({"discrepancy_weight": 5.0, "adversarial_weight": 0.0}, {}),
    "CORAL": ({"discrepancy": "coral", "discrepancy_weight": 5.0, "adversarial_weight": 0.0}, {}),
    "a classifier for each modality, plain softmax": (
        {"matching_weight": 0.0}, {"shared_classifier": False, "normalized_classifier": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "fields"), CASES.values(), ids=CASES)
def test_terms_and_gradients_are_those_of_the_definitions(tiny_model, loss, fields):
    model = without_dropout(tiny_model(**fields)).double()  # rounding is small beside any mistake
    if model.discriminator.condition is not None:  # it starts at 0, where it does nothing
        torch.nn.init.normal_(model.discriminator.condition, std=0.3)
    config = LossConfig(**SETTINGS, **loss)
    expected_terms, expected = reference(copy.deepcopy(model), config)
    terms, gradients = recorded_step(model, config)
    assert not any(value.ndim or value.requires_grad for value in terms.values())
    for name, value in expected_terms.items():
        torch.testing.assert_close(terms[name], value.detach(), check_dtype=False, rtol=1e-7, atol=1e-9)
    for (step,) in gradients.values():
        for key, gradient in step.items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())  # nothing is left for the next step


def test_number_of_discriminator_steps_and_clipping(tiny_model):
    model = without_dropout(tiny_model())
    _, gradients = recorded_step(model, LossConfig(), discriminator_steps=3, gradient_clip=0.01)
    assert {name: len(steps) for name, steps in gradients.items()} == {"image": 1, "text": 1, "discriminator": 3}
    squares = {n: sum(float(g.square().sum()) for g in steps[0].values()) for n, steps in gradients.items()}
    # The encoders' gradient is clipped as one vector.
    assert math.sqrt(squares["image"] + squares["text"]) == pytest.approx(0.01, rel=1e-3)
    assert math.sqrt(squares["discriminator"]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_reads_nothing_back_from_the_device(stored, tiny_model, monkeypatch):
    """On a GPU each such read would wait for all queued work."""
    model, config = tiny_model().train(), Config()
    inputs = batch_of(model)
    lengths = inputs["lengths"] = inputs["attention_mask"].sum(dim=1)
    if stored:
        inputs["words"] = model.text_encoder.word_states(inputs["words"], inputs["attention_mask"]).detach()
    learner = Learner(model, build_optimizers(model, config.train), {})
    step = functools.partial(train_step, learner, inputs, LABELS, config, Job("no"))
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(Tensor, name, None)
    step()
    # On a GPU the text encoder packs the sentences, which takes their lengths.
    pack = model.text_encoder._packed
    monkeypatch.setattr(model.text_encoder, "_padded", functools.partial(pack, lengths=lengths))
    step()
    monkeypatch.setattr(model.text_encoder, "_padded", functools.partial(pack, lengths=None))
    with pytest.raises(TypeError, match="not callable"):  # the test notices a read: without the lengths there is one
        step()


def test_each_weight_of_the_config_belongs_to_a_term():
    weights = {f.name for f in dataclasses.fields(LossConfig) if f.name.endswith("_weight")}
    assert {term.weight for term in TERMS} == weights
