"""Identities of our rendered pedestrians: which visible attributes a person can have, how often, and how to draw one.

The tables are ours: they imitate what people wear in street pictures, and stand for no survey and no dataset.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import asdict, dataclass, replace
from itertools import accumulate

import numpy as np

NONE = "none"  # the person has no such thing: no bag, no second colour, ...
Weights = dict[str, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (32, 32, 35), "white": (236, 236, 232), "grey": (138, 140, 144), "red": (184, 44, 46),
    "maroon": (104, 24, 38), "orange": (222, 124, 52), "yellow": (226, 196, 84), "green": (56, 126, 78),
    "olive": (92, 94, 54), "light blue": (150, 186, 216), "blue": (50, 88, 166), "navy": (32, 40, 74),
    "purple": (102, 62, 128), "pink": (226, 146, 172), "brown": (110, 70, 42), "beige": (206, 188, 156),
}  # fmt: skip
DENIM_COLOURS = {"black": (38, 39, 44), "grey": (116, 120, 128), "navy": (44, 54, 84), "blue": (76, 102, 144),
                 "light blue": (142, 170, 198)}  # fmt: skip
HAIR_COLOURS = {
    "black": (28, 24, 24), "brown": (84, 54, 34), "blonde": (206, 168, 96), "grey": (158, 156, 154),
    "red": (142, 62, 30),
}  # fmt: skip
SKINS = {"pale": (238, 204, 182), "light": (224, 182, 152), "tan": (198, 148, 112), "brown": (144, 98, 68),
         "dark": (92, 62, 46)}  # fmt: skip

CLOTH: Weights = {"black": 20, "white": 14, "grey": 12, "red": 8, "maroon": 4, "orange": 4, "yellow": 5, "green": 6,
                  "olive": 4, "light blue": 7, "blue": 9, "navy": 8, "purple": 5, "pink": 6, "brown": 4,
                  "beige": 5}  # fmt: skip
LEG_CLOTH: Weights = {"black": 30, "grey": 14, "navy": 12, "blue": 9, "beige": 9, "brown": 7, "white": 6, "olive": 6,
                      "red": 3, "green": 2, "purple": 2, "maroon": 2}  # fmt: skip
DENIM: Weights = {"blue": 40, "navy": 25, "light blue": 18, "black": 14, "grey": 8}
LEATHER: Weights = {"black": 30, "brown": 20, "white": 12, "red": 7, "beige": 7, "grey": 8, "navy": 5, "blue": 5,
                    "pink": 4, "orange": 2, "green": 3, "yellow": 2}  # fmt: skip
SHOE_CLOTH: Weights = {"black": 30, "white": 28, "grey": 10, "brown": 9, "red": 7, "blue": 5, "pink": 3,
                       "beige": 4, "green": 2,
                       "orange": 2}  # fmt: skip

SEASONS: Weights = {"warm": 5, "mild": 3, "cold": 3}
UPPERS: dict[tuple[str, str], Weights] = {
    ("man", "warm"): {"t-shirt": 10, "shirt": 5, "tank top": 1},
    ("man", "mild"): {"shirt": 4, "sweater": 3, "hoodie": 3, "jacket": 3},
    ("man", "cold"): {"jacket": 6, "coat": 5, "hoodie": 2},
    ("woman", "warm"): {"t-shirt": 7, "blouse": 4, "tank top": 3, "dress": 4},
    ("woman", "mild"): {"blouse": 3, "sweater": 4, "hoodie": 2, "jacket": 3, "dress": 2},
    ("woman", "cold"): {"jacket": 5, "coat": 6, "sweater": 1},
}
LOWERS: dict[tuple[str, str], Weights] = {
    ("man", "warm"): {"shorts": 5, "jeans": 4, "trousers": 5},
    ("man", "mild"): {"jeans": 5, "trousers": 6},
    ("man", "cold"): {"jeans": 5, "trousers": 6},
    ("woman", "warm"): {"shorts": 4, "skirt": 4, "long skirt": 2, "jeans": 4, "trousers": 2, "leggings": 2},
    ("woman", "mild"): {"jeans": 5, "trousers": 3, "leggings": 3, "skirt": 2, "long skirt": 2},
    ("woman", "cold"): {"jeans": 5, "trousers": 4, "leggings": 3},
}
SHOES: dict[tuple[str, str], Weights] = {
    ("man", "warm"): {"sneakers": 8, "leather shoes": 3, "sandals": 2},
    ("man", "mild"): {"sneakers": 6, "leather shoes": 4, "boots": 1},
    ("man", "cold"): {"sneakers": 4, "leather shoes": 4, "boots": 3},
    ("woman", "warm"): {"sneakers": 5, "sandals": 4, "high heels": 3},
    ("woman", "mild"): {"sneakers": 6, "high heels": 3, "boots": 2, "leather shoes": 1},
    ("woman", "cold"): {"boots": 6, "sneakers": 4, "high heels": 2},
}
PATTERNS: Weights = {"plain": 60, "striped": 12, "checked": 7, "dotted": 5, "logo": 10, "colour block": 6}
HAIR_STYLES: dict[str, Weights] = {
    "man": {"short": 16, "bald": 2, "shoulder length": 1.5, "ponytail": 0.5},
    "woman": {"long": 7, "shoulder length": 5, "ponytail": 5, "bun": 2, "short": 2},
}
HAIR_WEIGHTS: Weights = {"black": 10, "brown": 7, "blonde": 3, "grey": 2, "red": 1.2}
HEADWEAR: Weights = {NONE: 80, "cap": 10, "hat": 4, "beanie": 4}
GLASSES: Weights = {NONE: 78, "glasses": 15, "sunglasses": 7}
BAGS: dict[str, Weights] = {
    "man": {NONE: 9, "backpack": 8, "shoulder bag": 4, "handbag": 0.5, "plastic bag": 2, "suitcase": 1},
    "woman": {NONE: 6, "backpack": 5, "shoulder bag": 5, "handbag": 6, "plastic bag": 1.5, "suitcase": 1},
}
SKIN_WEIGHTS: Weights = {"pale": 5, "light": 8, "tan": 5, "brown": 4, "dark": 3}
BUILDS: Weights = {"average": 60, "slim": 24, "heavy": 16}
HEIGHTS: Weights = {"average": 66, "tall": 17, "short": 17}
OPEN_FRONTS = ("jacket", "coat")  # may be worn open, over something of another colour


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
    gender = pick(rng, {"man": 1, "woman": 1})
    worn = (gender, pick(rng, SEASONS))
    hair_style = pick(rng, HAIR_STYLES[gender])
    headwear = pick(rng, HEADWEAR)
    upper = pick(rng, UPPERS[worn])
    upper_colour = pick(rng, CLOTH)
    pattern = pick(rng, PATTERNS, without=("logo", "dotted") if upper in OPEN_FRONTS else ())
    lower = NONE if upper == "dress" else pick(rng, LOWERS[worn])
    bag = pick(rng, BAGS[gender])
    return Identity(
        gender=gender,
        skin=pick(rng, SKIN_WEIGHTS),
        build=pick(rng, BUILDS),
        height=pick(rng, HEIGHTS),
        hair_style=hair_style,
        hair_colour=NONE if hair_style == "bald" else pick(rng, HAIR_WEIGHTS),
        headwear=headwear,
        headwear_colour=NONE if headwear == NONE else pick(rng, CLOTH),
        glasses=pick(rng, GLASSES),
        upper=upper,
        upper_colour=upper_colour,
        upper_pattern=pattern,
        upper_second=NONE if pattern == "plain" else pick(rng, CLOTH, without=(upper_colour,)),
        inner_colour=pick(rng, CLOTH, (upper_colour,)) if upper in OPEN_FRONTS and rng.random() < 0.5 else NONE,
        lower=lower,
        lower_colour=NONE if lower == NONE else pick(rng, DENIM if lower == "jeans" else LEG_CLOTH),
        shoes=(shoes := pick(rng, SHOES[worn])),
        shoes_colour=pick(rng, SHOE_CLOTH if shoes == "sneakers" else LEATHER),
        bag=bag,
        bag_colour=NONE if bag == NONE else pick(rng, LEATHER),
        bag_side=NONE if bag in (NONE, "backpack") else pick(rng, {"left": 1, "right": 1}),
    )


def _alternatives(identity: Identity) -> dict[str, Weights]:
    """Attributes of ``identity`` that can change on their own, with the values they may change to."""
    options: dict[str, Weights] = {
        "hair_colour": HAIR_WEIGHTS, "upper_colour": CLOTH, "upper_second": CLOTH, "inner_colour": CLOTH,
        "lower_colour": DENIM if identity.lower == "jeans" else LEG_CLOTH, "headwear_colour": CLOTH,
        "shoes_colour": SHOE_CLOTH if identity.shoes == "sneakers" else LEATHER, "bag_colour": LEATHER,
        "bag_side": {"left": 1, "right": 1},
    }  # fmt: skip
    taken = {"upper_second": identity.upper_colour, "upper_colour": identity.upper_second}
    values = identity.as_dict()
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
