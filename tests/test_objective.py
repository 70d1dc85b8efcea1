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
PLAIN_SGD = TrainConfig(
    image_optimizer="sgd", text_optimizer="sgd", discriminator_optimizer="sgd", image_lr=0.1, text_lr=0.1,
    language_model_lr=0.1, discriminator_lr=0.1, weight_decay=0.0,
)  # fmt: skip


def batch_of(model: TIMAM) -> tuple[Tensor, dict[str, Tensor]]:
    images = torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    captions = ["a man", "the woman in a red dress", "black boots", "white shoes and a hat", "a bag", "blue jacket"]
    token_ids, mask = model.tokenize(captions)
    images = images.to(model.class_bias.dtype)
    return images, {"words": token_ids, "attention_mask": mask}


def without_dropout(model: TIMAM) -> TIMAM:
    """The same model in train mode, whose forward passes are all alike."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


class Recorder:
    """An optimizer that changes nothing and keeps the gradients that it was given."""

    def __init__(self, model: TIMAM, prefixes: tuple[str, ...]) -> None:
        self.named = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
        self.param_groups = [{"params": list(self.named.values())}]
        self.gradients: list[dict[str, Tensor]] = []

    def step(self) -> None:
        self.gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                               for n, p in self.named.items()})  # fmt: skip

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.named.values():
            p.grad = None


def taken(learner: Learner, loss: LossConfig, train: TrainConfig = PLAIN_SGD) -> dict[str, Tensor]:
    images, text = batch_of(learner.model)
    return train_step(learner, {"images": images, **text}, LABELS, Config(loss=loss, train=train), Job("no"))


def recorded_step(
    model: TIMAM, loss: LossConfig, train: TrainConfig = PLAIN_SGD
) -> tuple[dict[str, Tensor], dict[str, Recorder]]:
    """A step in which nothing moves: its terms, and the optimizers with the gradients that they got."""
    recorders = {
        "image": Recorder(model, ("image_encoder",)),
        "text": Recorder(model, ("text_encoder", "class_")),
        "discriminator": Recorder(model, ("discriminator",)),
    }
    temperature = torch.nn.Parameter(torch.tensor(math.log(0.7), dtype=torch.float64))
    return taken(Learner(model, recorders, {}, log_temperature=temperature), loss, train), recorders


def test_learned_temperature_stays_at_its_bound_and_can_leave_it(tiny_model):
    """CLIP's bound of 0.01. A clamp inside the loss would leave it without a gradient there for good."""
    model = tiny_model()
    temperature = torch.nn.Parameter(torch.tensor(math.log(0.001)))
    optimizers = build_optimizers(model, PLAIN_SGD)
    optimizers["text"].add_param_group({"params": [temperature], "lr": 1e-6})
    learner = Learner(model, optimizers, {}, log_temperature=temperature)
    taken(learner, LossConfig(matching="infonce"))
    assert float(temperature.detach().exp()) == pytest.approx(0.01)
    optimizers["text"].param_groups[-1]["lr"] = 1.0
    taken(learner, LossConfig(matching="infonce"))
    assert float(temperature.detach().exp()) > 0.011  # wrong pairs are near here: a higher one is better


def taken_step(model: TIMAM, loss: LossConfig) -> dict[str, Tensor]:
    return taken(Learner(model, build_optimizers(model, PLAIN_SGD), {}), loss)


SETTINGS = {"temperature": 0.5, "margin": 0.3, "matching_epsilon": 1e-6}  # InfoNCE's temperature is the learner's
MATCHING = {
    "cmpm": functools.partial(losses.cmpm_loss, epsilon=1e-6),
    "sdm": functools.partial(losses.sdm_loss, temperature=0.5, epsilon=1e-6),
    "infonce": functools.partial(losses.infonce_loss, temperature=0.7),
    "triplet": functools.partial(losses.triplet_loss, margin=0.3),
}


def reference(model: TIMAM, config: LossConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of `recorded_step`, written out from the paper's game and the config's definitions."""
    images, texts = model(batch_of(model)[0], **batch_of(model)[1])
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
    own = dict(d.named_parameters(prefix="discriminator"))
    others = {n: p for n, p in model.named_parameters() if n not in own}
    found = {}
    for value, named in ((penalised, own), (total, others)):
        gradients = torch.autograd.grad(value, list(named.values()), retain_graph=True, materialize_grads=True,
                                        allow_unused=True)  # fmt: skip
        found |= dict(zip(named, gradients, strict=True))
    return {"total": total, **terms, "discriminator": discriminator, "discriminator_accuracy": correct}, found


CASES = {
    "as in the paper": ({}, {}),
    **{name: ({"matching": name}, {}) for name in ("sdm", "infonce", "triplet")},
    "no adversary": ({"adversarial_weight": 0.0}, {}),
    "adversary alone": ({"matching_weight": 0.0, "identification_weight": 0.0}, {}),
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
    terms, recorders = recorded_step(model, config)
    assert terms.keys() >= expected_terms.keys()
    assert not any(value.ndim or value.requires_grad for value in terms.values())
    for name, value in ((name, terms[name]) for name in expected_terms):
        torch.testing.assert_close(value, expected_terms[name].detach(), check_dtype=False, rtol=1e-7, atol=1e-9)
    for name, recorder in recorders.items():
        assert len(recorder.gradients) == 1, name
        for key, gradient in recorder.gradients[0].items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    assert all(p.grad is None and p.requires_grad for p in model.discriminator.parameters())


def test_encoders_play_against_the_discriminator_after_its_step(tiny_model):
    model = without_dropout(tiny_model())
    before = copy.deepcopy(model)
    terms = taken_step(model, LossConfig())
    with torch.no_grad():
        images, texts = before(batch_of(before)[0], **batch_of(before)[1])
        p = [model.discriminator(e).sigmoid() for e in (images, texts)]
    expected = -torch.log(1 - p[0]).mean() - torch.log(p[1]).mean()
    torch.testing.assert_close(terms["adversarial"], expected, rtol=1e-5, atol=1e-6)
    assert all(q.grad is None for q in model.parameters())  # nothing is left for the next step


def test_number_of_discriminator_steps_and_clipping(tiny_model):
    train = dataclasses.replace(PLAIN_SGD, discriminator_steps=3, gradient_clip=0.01)
    _, recorders = recorded_step(without_dropout(tiny_model()), LossConfig(), train)
    assert {name: len(r.gradients) for name, r in recorders.items()} == {"image": 1, "text": 1, "discriminator": 3}
    squares = {n: sum(float(g.square().sum()) for g in r.gradients[0].values()) for n, r in recorders.items()}
    # The encoders' gradient is clipped as one vector.
    assert math.sqrt(squares["image"] + squares["text"]) == pytest.approx(0.01, rel=1e-3)
    assert math.sqrt(squares["discriminator"]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_reads_nothing_back_from_the_device(stored, tiny_model, monkeypatch):
    """On a GPU each such read would wait for all queued work."""
    model = tiny_model().train()
    images, text = batch_of(model)
    text["lengths"] = text["attention_mask"].sum(dim=1)
    if stored:
        text["words"] = model.text_encoder.word_states(text["words"], text["attention_mask"]).detach()
    config, job = Config(), Job("no")
    learner = Learner(model, build_optimizers(model, config.train), {})
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(Tensor, name, None)
    train_step(learner, {"images": images, **text}, LABELS, config, job)
    # On a GPU the text encoder packs the sentences, which takes their lengths.
    pack = model.text_encoder._packed
    monkeypatch.setattr(model.text_encoder, "_padded", functools.partial(pack, lengths=text["lengths"]))
    train_step(learner, {"images": images, **text}, LABELS, config, job)
    monkeypatch.setattr(model.text_encoder, "_padded", functools.partial(pack, lengths=None))
    with pytest.raises(TypeError, match="not callable"):  # the test notices a read: without the lengths there is one
        train_step(learner, {"images": images, **text}, LABELS, config, job)


def test_each_weight_of_the_config_belongs_to_a_term():
    weights = {f.name for f in dataclasses.fields(LossConfig) if f.name.endswith("_weight")}
    assert {term.weight for term in TERMS} == weights


def test_a_new_term_enters_the_sum_and_the_result(tiny_model, monkeypatch):
    constant = dataclasses.replace(TERMS[0], name="new", compute=lambda batch: batch.images.new_tensor(7.0))
    before = taken_step(without_dropout(tiny_model()), LossConfig(matching_weight=2.0))
    monkeypatch.setattr("timam.objective.TERMS", (*TERMS, constant))
    after = taken_step(without_dropout(tiny_model()), LossConfig(matching_weight=2.0))
    assert after["new"] == 7
    torch.testing.assert_close(after["total"], before["total"] + 14)
