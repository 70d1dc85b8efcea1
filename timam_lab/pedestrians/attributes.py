"""Who the rendered pedestrians are: the visible attributes that a person can have, and how often.

The tables (``people.json``) imitate what people wear in street pictures. They come from no survey and no data set.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import accumulate
from typing import Any

import numpy as np

NONE = "none"  # the person has no such thing: no bag, no second colour, ...
Weights = dict[str, float]
Colour = tuple[int, int, int]

TABLES: dict[str, Any] = json.loads((resources.files("timam_lab.pedestrians") / "people.json").read_text("utf-8"))
COLOURS, DENIM_COLOURS, HAIR_COLOURS, SKIN_COLOURS = (
    {name: (red, green, blue) for name, (red, green, blue) in TABLES[table].items()}
    for table in ("colours", "denim_colours", "hair_colours", "skin_colours")
)
WEIGHTS: dict[str, Weights] = TABLES["weights"]
BY_GENDER: dict[str, dict[str, Weights]] = TABLES["weights_by_gender"]
BY_SEASON: dict[str, dict[str, dict[str, Weights]]] = TABLES["weights_by_season"]  # and by gender
OPEN_FRONTS = ("jacket", "blazer", "puffer jacket", "coat")  # may be worn open, over something of another colour
THINGS = {  # what a person consists of, with the attributes of each
    "person": ("gender", "age", "height", "build"),
    "hair": ("hair_style", "hair_colour"),
    "headwear": ("headwear", "headwear_colour"),
    "glasses": ("glasses",),
    "scarf": ("scarf", "scarf_colour"),
    "upper": ("upper", "upper_colour", "upper_pattern", "upper_second", "inner_colour"),
    "lower": ("lower", "lower_colour"),
    "shoes": ("shoes", "shoes_colour"),
    "bag": ("bag", "bag_colour", "bag_side"),
}


@dataclass(frozen=True)
class Identity:
    """What one person looks like; every field is a word of the tables above, ``none`` where there is nothing."""

    gender: str  # "man" or "woman", also of children: how the captions refer to the person
    age: str
    skin: str  # drawn, never written about
    build: str
    height: str  # seen in the proportions: head and breadth against the whole
    hair_style: str
    hair_colour: str
    headwear: str
    headwear_colour: str
    glasses: str
    scarf: str
    scarf_colour: str
    upper: str
    upper_colour: str
    upper_pattern: str
    upper_second: str  # second colour of the pattern
    inner_colour: str  # of what shows below an open jacket or a vest
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


def pick(rng: np.random.Generator, weights: Weights, without: Collection[str] = ()) -> str:
    """Draw one key of ``weights`` in proportion to its weight, never one of ``without``."""
    keys = [key for key in weights if key not in without]
    totals = list(accumulate(weights[key] for key in keys))
    return keys[min(bisect(totals, rng.random() * totals[-1]), len(keys) - 1)]


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw one plausible person: clothes fit a season and an age, colours fit the garment."""
    drawn = {name: pick(rng, WEIGHTS[name]) for name in ("gender", "age", "skin", "build", "height", "glasses")}
    gender, age, season, cloth = drawn["gender"], drawn["age"], pick(rng, WEIGHTS["season"]), WEIGHTS["cloth"]
    without = TABLES["unsuitable"].get(age, [])  # a child's height is a child's, and so on
    hair_style = pick(rng, BY_GENDER["hair_style"][gender], without)
    headwear = pick(rng, WEIGHTS["headwear"], without if gender == "woman" else ("headscarf",))
    scarf = pick(rng, WEIGHTS["scarf"]) if season == "cold" and headwear != "headscarf" else NONE
    upper = pick(rng, BY_SEASON["upper"][gender][season], without)
    upper_colour = pick(rng, cloth)
    pattern = pick(rng, WEIGHTS["pattern"], TABLES["unsuitable"].get(upper, ()))
    opened = upper in ("blazer", "vest") or (upper in OPEN_FRONTS and rng.random() < 0.5)
    lower = NONE if upper == "dress" else pick(rng, BY_SEASON["lower"][gender][season])
    shoes = pick(rng, BY_SEASON["shoes"][gender][season], without)
    bag = pick(rng, BY_GENDER["bag"][gender], without)
    grey = age == "elderly" and rng.random() < 0.75
    return Identity(
        **drawn | {"height": "average"} if age == "child" else drawn,
        hair_style=hair_style,
        hair_colour=NONE if hair_style == "bald" else "grey" if grey else pick(rng, _hair_colours(age)),
        headwear=headwear,
        headwear_colour=NONE if headwear == NONE else pick(rng, cloth),
        scarf=scarf,
        scarf_colour=NONE if scarf == NONE else pick(rng, cloth, (upper_colour,)),
        upper=upper,
        upper_colour=upper_colour,
        upper_pattern=pattern,
        upper_second=NONE if pattern == "plain" else pick(rng, cloth, (upper_colour,)),
        inner_colour=pick(rng, cloth, (upper_colour,)) if opened else NONE,
        lower=lower,
        lower_colour=NONE if lower == NONE else pick(rng, _leg_colours(lower)),
        shoes=shoes,
        shoes_colour=pick(rng, _shoe_colours(shoes)),
        bag=bag,
        bag_colour=NONE if bag == NONE else pick(rng, WEIGHTS["leather"]),
        bag_side=NONE if bag in (NONE, "backpack") else pick(rng, WEIGHTS["side"]),
    )


def _hair_colours(age: str) -> Weights:
    return {colour: weight for colour, weight in WEIGHTS["hair_colour"].items() if age != "child" or colour != "grey"}


def _leg_colours(lower: str) -> Weights:
    return WEIGHTS["denim" if lower == "jeans" else "leg_cloth"]


def _shoe_colours(shoes: str) -> Weights:
    return WEIGHTS["shoe_cloth" if shoes == "sneakers" else "leather"]


def _alternatives(identity: Identity) -> dict[str, Weights]:
    """Attributes of ``identity`` that can change on their own, with the values they may change to."""
    cloth, values = WEIGHTS["cloth"], identity.as_dict()
    options = {name: cloth for name in values if name.endswith("_colour")} | {
        "upper_second": cloth,
        "hair_colour": _hair_colours(identity.age),
        "lower_colour": _leg_colours(identity.lower),
        "shoes_colour": _shoe_colours(identity.shoes),
        "bag_colour": WEIGHTS["leather"],
        "bag_side": WEIGHTS["side"],
    }
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
