"""Words and phrases of our captions: ``lexicon.json``, table by table.

A table maps a key to its options, the usual one first; the key ``""`` is of what is left unsaid. In an option ``[a|b]``
stands for any one of a and b, and ``{x}`` for a word that is filled in: n noun, c colour, d second colour, np noun
phrase, side; s, p, o "he", "his", "him"; is, has, be, is_ "is" or "has" as the subject or noun asks.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

Table = dict[str, list[str]]
_WORDS: dict[str, Any] = json.loads((resources.files("timam_lab.pedestrians") / "lexicon.json").read_text("utf-8"))

NOUNS: Table = _WORDS["nouns"]  # by gender
PRONOUNS: dict[str, dict[str, str]] = _WORDS["pronouns"]
STATURE: Table = _WORDS["stature"]
COLOUR_WORDS: Table = _WORDS["colour_words"]
HAIR_COLOUR_WORDS: Table = _WORDS["hair_colour_words"]
GARMENTS: Table = _WORDS["garments"]  # nouns by type; a plural is marked by a leading "+"
UNNAMED: Table = _WORDS["unnamed"]  # when the type is not told
# Noun phrases; the one that uses exactly those of n, c, d that are to be told fits.
PATTERN_PHRASES: Table = _WORDS["pattern_phrases"]
PLAIN_PHRASES: Table = _WORDS["plain_phrases"]
INNER: Table = _WORDS["inner"]  # what shows below an open jacket
HAIR_PHRASES: Table = _WORDS["hair_phrases"]
HAIR_CLAUSES: Table = _WORDS["hair_clauses"]  # whole sentences about one thing, as the next ones
CLAUSES: Table = _WORDS["clauses"]
BAG_PLACE: dict[str, str] = _WORDS["bag_place"]  # where a bag is worn, a key of the next table
PLACES: Table = _WORDS["places"]
# Verbs of a main clause ("singular, plural"); then what follows a noun. The first two ways to wear suit everything.
VERBS: Table = _WORDS["verbs"]
PARTICIPLES: Table = _WORDS["participles"]
OPENINGS: list[str] = _WORDS["openings"]  # sentences that introduce a person (who) as described (what)
REMARKS: list[str] = _WORDS["remarks"]  # sentences that say nothing about them
MISSPELLINGS: Table = _WORDS["misspellings"]
CONFUSED_COLOURS: Table = _WORDS["confused_colours"]  # what people take a colour for
CONFUSED: dict[str, Table] = _WORDS["confused"]  # and the values of other attributes
