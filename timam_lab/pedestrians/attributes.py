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
Rng = np.random.Generator
Colour = tuple[int, int, int]

TABLES: dict[str, Any] = json.loads((resources.files("timam_lab.pedestrians") / "people.json").read_text("utf-8"))
COLOURS, DENIM_COLOURS, HAIR_COLOURS, SKIN_COLOURS = (
    {name: (red, green, blue) for name, (red, green, blue) in TABLES[table].items()}
    for table in ("colours", "denim_colours", "hair_colours", "skin_colours")
)
WEIGHTS: dict[str, Weights] = TABLES["weights"]
BY_GENDER: dict[str, dict[str, Weights]] = TABLES["weights_by_gender"]
BY_SEASON: dict[str, dict[str, dict[str, Weights]]] = TABLES["weights_by_season"]  # and by gender
THINGS: dict[str, list[str]] = TABLES["things"]  # what a person consists of, with the attributes of each


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


def pick(rng: Rng, weights: Weights, without: Collection[str] = ()) -> str:
    """Draw one key of ``weights`` in proportion to its weight, never one of ``without``."""
    keys = [key for key in weights if key not in without]
    totals = list(accumulate(weights[key] for key in keys))
    return keys[min(bisect(totals, rng.random() * totals[-1]), len(keys) - 1)]


def draw_identity(rng: Rng) -> Identity:
    """Draw one plausible person: clothes fit a season and an age, colours fit the garment."""
    drawn = {name: pick(rng, WEIGHTS[name]) for name in ("gender", "age", "skin", "build", "height", "glasses")}
    gender, age, season = drawn["gender"], drawn["age"], pick(rng, WEIGHTS["season"])
    without = TABLES["unsuitable"].get(age, [])
    values = {
        **drawn,
        "height": "average" if age == "child" else drawn["height"],
        "hair_style": pick(rng, BY_GENDER["hair_style"][gender], without),
        "headwear": pick(rng, WEIGHTS["headwear"], without if gender == "woman" else ("headscarf",)),
        "upper": pick(rng, BY_SEASON["upper"][gender][season], without),
        "lower": pick(rng, BY_SEASON["lower"][gender][season]),
        "shoes": pick(rng, BY_SEASON["shoes"][gender][season], without),
        "bag": pick(rng, BY_GENDER["bag"][gender], without),
        "scarf": pick(rng, WEIGHTS["scarf"]) if season == "cold" else NONE,
    }
    values["lower"] = NONE if values["upper"] == "dress" else values["lower"]
    values["scarf"] = NONE if values["headwear"] == "headscarf" else values["scarf"]
    values["upper_pattern"] = pick(rng, WEIGHTS["pattern"], TABLES["unsuitable"].get(values["upper"], ()))
    for thing in ("upper", "lower", "headwear", "scarf", "shoes", "bag"):
        colours = _colours(f"{thing}_colour", values)
        values[f"{thing}_colour"] = NONE if values[thing] == NONE else pick(rng, colours)
    values["hair_colour"] = NONE if values["hair_style"] == "bald" else pick(rng, _colours("hair_colour", values))
    opened = rng.random() < TABLES["worn_open"].get(values["upper"], 0)
    for name, there in (("upper_second", values["upper_pattern"] != "plain"), ("inner_colour", opened)):
        values[name] = pick(rng, WEIGHTS["cloth"], (values["upper_colour"],)) if there else NONE
    values["bag_side"] = NONE if values["bag"] in (NONE, "backpack") else pick(rng, WEIGHTS["side"])
    return Identity(**values)


def _colours(name: str, values: dict[str, str]) -> Weights:
    """Which colours an attribute can have in a person with these values, and how often."""
    if name == "hair_colour":
        return TABLES["hair_colours_by_age"][values["age"]]
    if name == "lower_colour":
        return WEIGHTS["denim" if values["lower"] == "jeans" else "leg_cloth"]
    if name == "shoes_colour":
        return WEIGHTS["shoe_cloth" if values["shoes"] == "sneakers" else "leather"]
    return WEIGHTS["leather" if name == "bag_colour" else "cloth"]


def _alternatives(identity: Identity) -> dict[str, Weights]:
    """Attributes of ``identity`` that can change on their own, with the values they may change to."""
    values = asdict(identity)
    names = [name for name in values if name.endswith(("_colour", "_second", "_side")) and values[name] != NONE]
    taken = {"upper_second": values["upper_colour"], "upper_colour": values["upper_second"]}
    options = {name: WEIGHTS["side"] if name == "bag_side" else _colours(name, values) for name in names}
    return {
        name: {value: weight for value, weight in weights.items() if value not in (values[name], taken.get(name))}
        for name, weights in options.items()
    }


def vary_identity(rng: Rng, identity: Identity) -> tuple[Identity, list[str]]:
    """A near duplicate: ``identity`` with one or two attributes changed, and the names of those."""
    names = sorted(_alternatives(identity))
    changed = [str(name) for name in rng.permutation(names)[: int(rng.integers(1, 3))]]
    for name in changed:  # options are looked up again, as one change can rule out another
        identity = replace(identity, **{name: pick(rng, _alternatives(identity)[name])})
    return identity, sorted(changed)
