"""The parameters of the rendered pedestrians: how many, which size, and the shares of all that makes a search hard."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

CUHK_PEDES_IDENTITIES = (11_003, 1_000, 1_000)
TALLEST = 300  # pixels: original height of the largest pictures
DIFFICULTIES: dict[str, dict[str, float]] = {  # standard: the defaults of `PedestrianSpec`
    "easy": {"omission": 0.2, "mistake": 0, "misspelling": 0, "remark": 0, "negation": 0, "unseen_words": 0,
             "habits": 0.3, "shades": 0, "occlusion": 0.05, "company": 0.1, "cut_off": 0, "smallest": 120,
             "near_duplicate": 0},
    "standard": {},
    "hard": {"omission": 0.45, "mistake": 0.08, "misspelling": 0.03, "remark": 0.3, "negation": 0.3,
             "unseen_words": 0.5, "habits": 0.9, "shades": 0.5, "occlusion": 0.3, "company": 0.5, "cut_off": 0.2,
             "near_duplicate": 0.3},
}  # fmt: skip
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class PedestrianSpec:
    """What to render. Shares are fractions in [0, 1].

    Raises:
        ValueError: a field is out of its bounds; the message names field, value and bound.
    """

    train_identities: Count = 1_000  # with the defaults below 3,710 images: about a minute on a few cores
    val_identities: Count = 100
    test_identities: Count = 100
    images_per_identity: Annotated[float, Field(ge=1, le=1_000)] = 40_206 / 13_003  # mean, as CUHK-PEDES
    captions_per_image: Count = 2  # as CUHK-PEDES
    height: Annotated[int, Field(ge=64, le=512)] = 192  # pixels; twice the width is the usual shape of a person crop
    width: Annotated[int, Field(ge=32, le=512)] = 96
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # Share of the visible attributes a caption leaves out: gives about 22 words; all of them left out is no caption.
    omission: Annotated[float, Field(ge=0, le=0.9)] = 0.35
    mistake: Share = 0.04  # of the mentioned attributes that are wrong: people err, but not often
    misspelling: Share = 0.015  # of the words; about one in three captions has one
    remark: Share = 0.15  # of the captions that also say something of no use
    negation: Share = 0.15  # of the captions that also say what is not there
    unseen_words: Share = 0.2  # of the mentions in validation and test in words that no training caption has
    describers: Annotated[int, Field(ge=1, le=1_000)] = 12  # people who write the captions
    habits: Share = 0.7  # of a describer's choices (order, length, words, ...) that follow a habit
    shades: Share = 0.3  # of the shades that a describer calls by another colour's name
    occlusion: Share = 0.15  # of the images with something in front of the person
    company: Share = 0.3  # of the images with other people
    cut_off: Share = 0.1  # of the images whose edge cuts the person
    smallest: Annotated[int, Field(ge=40, le=TALLEST)] = 40  # pixels: least height before a picture is brought to size
    near_duplicate: Share = 0.15  # of the identities that differ from another one in one or two attributes

    @classmethod
    def of_size(cls, identities: int, difficulty: str = "standard", **given: Any) -> PedestrianSpec:
        """A spec with ``identities`` people in all, split in the proportions of CUHK-PEDES, each split at least one.

        Args:
            difficulty: one of DIFFICULTIES, for the fields that are not given.

        Raises:
            ValueError: fewer than three identities, an unknown difficulty, or a field out of its bounds.
        """
        if not 3 <= identities <= 3_000_000:
            raise ValueError(f"identities = {identities} must lie in [3, 3000000]")
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty = {difficulty!r} must be one of {', '.join(DIFFICULTIES)}")
        _, val, test = (max(1, round(identities * part / sum(CUHK_PEDES_IDENTITIES))) for part in CUHK_PEDES_IDENTITIES)
        sizes = {"train_identities": identities - val - test, "val_identities": val, "test_identities": test}
        return cls(**DIFFICULTIES[difficulty] | sizes | given)

    @property
    def identities(self) -> int:
        """Number of people in all splits."""
        return self.train_identities + self.val_identities + self.test_identities

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return round(self.images_per_identity * self.identities)
