"""Identities of our rendered pedestrians: which visible attributes a person can have, how often, and how to draw one.

The tables (``people.json``) are ours: they imitate what people wear in street pictures, and stand for no survey and no
dataset.
"""

from __future__ import annotations

import json
from bisect import bisect
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import accumulate
from typing import Any

import numpy as np

NONE = "none"  # the person has no such thing: no bag, no second colour, ...
Weights = dict[str, float]

TABLES: dict[str, Any] = json.loads((resources.files("timam_lab.pedestrians") / "people.json").read_text("utf-8"))
COLOURS, DENIM_COLOURS, HAIR_COLOURS, SKIN_COLOURS = (
    {name: (red, green, blue) for name, (red, green, blue) in TABLES[table].items()}
    for table in ("colours", "denim_colours", "hair_colours", "skin_colours")
)
WEIGHTS: dict[str, Weights] = TABLES["weights"]
BY_GENDER: dict[str, dict[str, Weights]] = TABLES["weights_by_gender"]
BY_SEASON: dict[str, dict[str, dict[str, Weights]]] = TABLES["weights_by_season"]  # and by gender
OPEN_FRONTS = ("jacket", "coat")  # may be worn open, over something of another colour
THINGS = {  # what a person consists of, with the attributes of each
    "person": ("gender", "height", "build"),
    "hair": ("hair_style", "hair_colour"),
    "headwear": ("headwear", "headwear_colour"),
    "glasses": ("glasses",),
    "upper": ("upper", "upper_colour", "upper_pattern", "upper_second", "inner_colour"),
    "lower": ("lower", "lower_colour"),
    "shoes": ("shoes", "shoes_colour"),
    "bag": ("bag", "bag_colour", "bag_side"),
}


@dataclass(frozen=True)
class Identity:
    """What one person looks like; every field is a word of the tables above, ``none`` where there is nothing."""

    gender: str  # "man" or "woman": how the captions refer to the person
    skin: str  # drawn, never written about
    build: str
    height: str
    hair_style: str
    hair_colour: str
    headwear: str
    headwear_colour: str
    glasses: str
    upper: str
    upper_colour: str
    upper_pattern: str
    upper_second: str  # second colour of the pattern
    inner_colour: str  # of what shows below an open jacket or coat
    lower: str  # none with a dress
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    bag_side: str  # the person's own left or right; none for a backpack

    def as_dict(self) -> dict[str, str]:
        """The attributes by name, in the order above."""
        return asdict(self)


def pick(rng: np.random.Generator, weights: Weights, without: tuple[str, ...] = ()) -> str:
    """Draw one key of ``weights`` in proportion to its weight, never one of ``without``."""
    keys = [key for key in weights if key not in without]
    totals = list(accumulate(weights[key] for key in keys))
    return keys[min(bisect(totals, rng.random() * totals[-1]), len(keys) - 1)]


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw one plausible person: clothes fit a season, colours fit the garment."""
    gender, season = pick(rng, WEIGHTS["gender"]), pick(rng, WEIGHTS["season"])
    hair_style = pick(rng, BY_GENDER["hair_style"][gender])
    headwear = pick(rng, WEIGHTS["headwear"])
    upper = pick(rng, BY_SEASON["upper"][gender][season])
    upper_colour = pick(rng, WEIGHTS["cloth"])
    open_front = upper in OPEN_FRONTS
    pattern = pick(rng, WEIGHTS["pattern"], without=("logo", "dotted") if open_front else ())
    lower = NONE if upper == "dress" else pick(rng, BY_SEASON["lower"][gender][season])
    bag = pick(rng, BY_GENDER["bag"][gender])
    return Identity(
        gender=gender,
        skin=pick(rng, WEIGHTS["skin"]),
        build=pick(rng, WEIGHTS["build"]),
        height=pick(rng, WEIGHTS["height"]),
        hair_style=hair_style,
        hair_colour=NONE if hair_style == "bald" else pick(rng, WEIGHTS["hair_colour"]),
        headwear=headwear,
        headwear_colour=NONE if headwear == NONE else pick(rng, WEIGHTS["cloth"]),
        glasses=pick(rng, WEIGHTS["glasses"]),
        upper=upper,
        upper_colour=upper_colour,
        upper_pattern=pattern,
        upper_second=NONE if pattern == "plain" else pick(rng, WEIGHTS["cloth"], without=(upper_colour,)),
        inner_colour=pick(rng, WEIGHTS["cloth"], (upper_colour,)) if open_front and rng.random() < 0.5 else NONE,
        lower=lower,
        lower_colour=NONE if lower == NONE else pick(rng, _leg_colours(lower)),
        shoes=(shoes := pick(rng, BY_SEASON["shoes"][gender][season])),
        shoes_colour=pick(rng, _shoe_colours(shoes)),
        bag=bag,
        bag_colour=NONE if bag == NONE else pick(rng, WEIGHTS["leather"]),
        bag_side=NONE if bag in (NONE, "backpack") else pick(rng, WEIGHTS["side"]),
    )


def _leg_colours(lower: str) -> Weights:
    return WEIGHTS["denim" if lower == "jeans" else "leg_cloth"]


def _shoe_colours(shoes: str) -> Weights:
    return WEIGHTS["shoe_cloth" if shoes == "sneakers" else "leather"]


def _alternatives(identity: Identity) -> dict[str, Weights]:
    """Attributes of ``identity`` that can change on their own, with the values they may change to."""
    cloth, values = WEIGHTS["cloth"], identity.as_dict()
    options = {
        "hair_colour": WEIGHTS["hair_colour"], "upper_colour": cloth, "upper_second": cloth, "inner_colour": cloth,
        "lower_colour": _leg_colours(identity.lower), "headwear_colour": cloth,
        "shoes_colour": _shoe_colours(identity.shoes), "bag_colour": WEIGHTS["leather"], "bag_side": WEIGHTS["side"],
    }  # fmt: skip
    taken = {"upper_second": identity.upper_colour, "upper_colour": identity.upper_second}
    return {
        name: {value: weight for value, weight in weights.items() if value not in (values[name], taken.get(name))}
        for name, weights in options.items()
        if values[name] != NONE
    }


def vary_identity(rng: np.random.Generator, identity: Identity) -> tuple[Identity, list[str]]:
    """A near duplicate: ``identity`` with one or two attributes changed, and the names of those."""
    names = sorted(_alternatives(identity))
    changed = [str(name) for name in rng.permutation(names)[: int(rng.integers(1, 3))]]
    for name in changed:  # options are looked up again, as one change can rule out another
        identity = replace(identity, **{name: pick(rng, _alternatives(identity)[name])})
    return identity, sorted(changed)
