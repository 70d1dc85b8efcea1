"""Write the captions of our rendered pedestrians, each in the manner of another annotator, and say what went into it.

A caption is planned as a list of attributes to state (some left out, some stated wrongly), grouped into things (hair,
upper garment, ...), put into sentences, and finally mistyped here and there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from timam_lab.pedestrians import lexicon
from timam_lab.pedestrians.attributes import NONE, THINGS, Identity

_UNREMARKABLE = {"build": "average", "height": "average", "upper_pattern": "plain"}  # nobody writes these
_ORDERS = (  # in which people go through a person
    ("hair", "headwear", "glasses", "upper", "lower", "shoes", "bag"),
    ("upper", "lower", "shoes", "bag", "hair", "headwear", "glasses"),
    ("upper", "lower", "shoes", "hair", "glasses", "headwear", "bag"),
    ("bag", "upper", "lower", "shoes", "headwear", "glasses", "hair"),
    ("shoes", "lower", "upper", "headwear", "hair", "glasses", "bag"),
)
_BARE = ("{} is shown here", "the picture shows {}", "there is {}", "{} can be seen")  # of whom nothing else is said
_BE = {False: "is", True: "are"}
T = TypeVar("T")


@dataclass(frozen=True)
class Noise:
    """Shares in [0, 1]: attributes left out, mentioned ones wrong, words misspelled, captions with a remark."""

    omission: float
    mistake: float
    misspelling: float
    remark: float


@dataclass(frozen=True)
class Phrase:
    """One thing in words: ``verb`` keys lexicon.VERBS, ``clauses`` are whole sentences that say the same."""

    thing: str
    verb: str
    text: str
    clauses: list[str]


def write_caption(rng: np.random.Generator, identity: Identity, hidden: Sequence[str], noise: Noise) -> dict[str, Any]:
    """Describe ``identity`` as seen in a picture that does not show the attributes ``hidden``.

    Returns:
        text; mentioned, omitted (names of attributes, both visible); wrong (list of attribute, true, stated);
        misspelled (list of word, written); remark (bool).
    """
    visible = visible_attributes(identity, hidden)
    mentioned = _choose_mentioned(rng, list(visible), noise.omission)
    said, wrong = _make_mistakes(rng, {name: visible[name] for name in mentioned}, noise.mistake)
    remark = bool(rng.random() < noise.remark)
    text = Writer(rng, said, identity.upper == "dress").write(remark)
    text, misspelled = _misspell(rng, text, noise.misspelling)
    omitted = [name for name in visible if name not in said]
    return {"text": text, "mentioned": mentioned, "omitted": omitted, "wrong": wrong, "misspelled": misspelled,
            "remark": remark}  # fmt: skip


def visible_attributes(identity: Identity, hidden: Sequence[str]) -> dict[str, str]:
    """The attributes a truthful and exhaustive annotator would state, in the order of THINGS."""
    values = identity.as_dict()
    names = [name for group in THINGS.values() for name in group if name not in hidden]
    return {name: values[name] for name in names if values[name] not in (NONE, _UNREMARKABLE.get(name))}


# -- what to say ------------------------------------------------------------------------------------------------------


def _round(rng: np.random.Generator, value: float) -> int:
    """Round up or down at random, so that the mean is ``value``."""
    return int(value + rng.random())


def _any(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _usual(rng: np.random.Generator, options: Sequence[T]) -> T:
    """The first option half of the time, else any."""
    return options[0] if rng.random() < 0.55 else _any(rng, options)


def _choose_mentioned(rng: np.random.Generator, names: list[str], omission: float) -> list[str]:
    """Drop a share ``omission`` of ``names``: often a whole thing at once, else one attribute; at least one stays."""
    share = omission + min(omission, 1 - omission) * rng.uniform(-0.5, 0.5)  # some annotators are terse
    drop, kept = min(_round(rng, share * len(names)), len(names) - 1), list(names)
    while drop:
        things = [[name for name in group if name in kept] for group in THINGS.values()]
        groups = [group for group in things if 0 < len(group) <= drop and group[0] != "gender"]
        gone = _any(rng, groups) if groups and rng.random() < 0.6 else [_any(rng, kept)]
        if gone[0] in ("gender", "upper", "lower") and rng.random() < 0.8 and len(kept) > 3:
            continue  # hardly anyone leaves these out
        kept = [name for name in kept if name not in gone]
        drop -= len(gone)
    return kept


def _make_mistakes(
    rng: np.random.Generator, true: dict[str, str], mistake: float
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """State a share ``mistake`` of the attributes wrongly; returns what is said and a record of what is wrong."""
    said, wrong = dict(true), []
    for name, value in true.items():
        if rng.random() < mistake:
            said[name] = _confuse(rng, name, value, said)
            wrong.append({"attribute": name, "true": value, "stated": said[name]})
    return said, wrong


def _confuse(rng: np.random.Generator, name: str, value: str, said: Mapping[str, str]) -> str:
    """Another value that people take ``value`` for; the two colours of a garment stay different."""
    near = lexicon.CONFUSED.get(name, lexicon.CONFUSED_COLOURS)[value]
    if name.endswith("_colour") or name == "upper_second":
        everything = list(lexicon.HAIR_COLOUR_WORDS if name == "hair_colour" else lexicon.COLOUR_WORDS)
        taken = {value, said.get("upper_second"), said.get("upper_colour")} if name.startswith("upper") else {value}
        near = near if rng.random() < 0.85 else everything
        near = [v for v in near if v not in taken] or [v for v in everything if v not in taken]
    return _any(rng, near)


# -- how to say it ----------------------------------------------------------------------------------------------------


def _fitting(templates: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Templates that use exactly those of n, c, d that ``words`` has."""
    return [t for t in templates if set(re.findall(r"\{([ncd])\}", t)) == set(words) & set("ncd")]


def _join(parts: Sequence[str], last: str = " and ") -> str:
    if len(parts) == 2 and not any(" and " in part for part in parts):
        last = last.replace(", and", " and")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


def _grouped(phrases: Sequence[Phrase]) -> dict[str, list[Phrase]]:
    """Phrases by verb, in order of first appearance."""
    groups: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        groups.setdefault(phrase.verb, []).append(phrase)
    return groups


class Writer:
    """One annotator at one picture: ``said`` maps attributes to the values to state."""

    def __init__(self, rng: np.random.Generator, said: Mapping[str, str], dress: bool) -> None:
        self.rng, self.said, self.dress = rng, said, dress  # a dress left unnamed is no "top"
        gender = said.get("gender", "")
        self.noun, self.words = _usual(rng, lexicon.NOUNS[gender]), lexicon.PRONOUNS[gender]
        self.plural_pronoun = gender == ""
        self.last = ", and " if rng.random() < 0.35 else " and "

    def write(self, remark: bool) -> str:
        """The whole caption."""
        phrases = self._phrases()
        sentences = self._listed(phrases) if self.rng.random() < 0.05 and len(phrases) > 2 else self._told(phrases)
        if remark:
            where = len(sentences) if self.rng.random() < 0.75 else int(self.rng.integers(1, len(sentences) + 1))
            sentences.insert(where, self._fill(_any(self.rng, lexicon.REMARKS)))
        return self._finish(sentences)

    def _fill(self, template: str, **words: str) -> str:
        while "[" in template:
            template = re.sub(r"\[([^\[\]]*)\]", lambda m: _any(self.rng, m[1].split("|")), template, count=1)
        return template.format(**{**self.words, "plural": "" if self.plural_pronoun else "s", **words})

    def _fill_fitting(self, templates: Sequence[str], words: Mapping[str, str]) -> str:
        return self._fill(_any(self.rng, _fitting(templates, words)), **words)

    # -- things

    def _phrases(self) -> list[Phrase]:
        """What is said of each thing, in this annotator's order."""
        order = _ORDERS[0 if self.rng.random() < 0.35 else int(self.rng.integers(len(_ORDERS)))]
        makers = {"hair": self._hair, "bag": self._bag, "upper": self._upper}
        told = [thing for thing in order if any(name in self.said for name in THINGS[thing])]
        return [makers[thing]() if thing in makers else self._worn(thing) for thing in told]

    def _colour(self, name: str, table: lexicon.Table = lexicon.COLOUR_WORDS, key: str = "c") -> dict[str, str]:
        """The word for a colour that is to be told, under the name it has in templates."""
        return {key: _usual(self.rng, table[self.said[name]])} if name in self.said else {}

    def _noun(self, thing: str) -> tuple[str, bool]:
        """A noun for a thing worn or carried, and whether it is plural."""
        kind = self.said.get("upper" if thing == "dress" else thing)
        noun = _usual(self.rng, lexicon.GARMENTS[kind] if kind else lexicon.UNNAMED[thing])
        return noun.removeprefix("+"), noun.startswith("+")

    def _clauses(self, thing: str, words: Mapping[str, str], text: str, plural: bool = False) -> list[str]:
        """Whole sentences that say the same as ``text``."""
        singular = not plural or text.startswith("a pair")
        more = {"np": text, "be": _BE[plural], "v": "s" if singular else "", "is_": _BE[not singular]}
        templates = [t for t in lexicon.CLAUSES[thing] if "{np}" in t] + _fitting(lexicon.CLAUSES[thing], words)
        return [self._fill(t, **words, **more) for t in templates]

    def _hair(self) -> Phrase:
        words, style = self._colour("hair_colour", lexicon.HAIR_COLOUR_WORDS), self.said.get("hair_style", "")
        text = self._fill_fitting(lexicon.HAIR_PHRASES[style], words)
        clauses = [self._fill(clause, **words) for clause in _fitting(lexicon.HAIR_CLAUSES[style], words)]
        return Phrase("hair", "have", text, clauses)

    def _worn(self, thing: str) -> Phrase:
        noun, plural = self._noun(thing)
        words = {"n": noun, **self._colour(f"{thing}_colour")}
        text = self._fill_fitting(lexicon.PLAIN_PHRASES["plural" if plural else "singular"], words)
        if noun in ("footwear", "headgear"):
            text = text.removeprefix("a ")
        return Phrase(thing, "wear", text, self._clauses(thing, words, text, plural))

    def _upper(self) -> Phrase:
        pattern, inner = self.said.get("upper_pattern", ""), "inner_colour" in self.said
        words = {"n": self._noun("dress" if self.dress else "upper")[0], **self._colour("upper_colour"),
                 **self._colour("upper_second", key="d")}  # fmt: skip
        told = any(name in self.said for name in THINGS["upper"][:4])
        text = self._fill_fitting(lexicon.PATTERN_PHRASES[pattern], words) if told else ""
        clauses = [] if pattern or "d" in words or inner else self._clauses("upper", words, text)
        if inner:
            below = _any(self.rng, lexicon.INNER["over" if told else "alone"])
            text = f"{text} {self._fill(below, **self._colour('inner_colour'))}".strip()
        return Phrase("upper", "wear", text, clauses)

    def _bag(self) -> Phrase:
        place, side = lexicon.BAG_PLACE[self.said.get("bag", "")], self.said.get("bag_side")
        words = {"n": self._noun("bag")[0], **self._colour("bag_colour")}
        text = self._fill_fitting(lexicon.PLAIN_PHRASES["singular"][:2], words)
        if side:
            where = lexicon.PLACES["shoulder" if place == "back" else place]
            text += " " + self._fill(_any(self.rng, where), side=side)
        elif place == "back":
            text += " " + self._fill(_any(self.rng, lexicon.PLACES["back"]))
        verb = place if place in ("hand", "pull") else "carry"
        if place in ("back", "shoulder") and self.rng.random() < 0.4:
            verb = "wear"
        return Phrase("bag", verb, text, self._clauses("bag", words, text))

    # -- sentences

    def _subject(self, article: str) -> str:
        names = [name for name in ("height", "build") if name in self.said]
        traits = [_usual(self.rng, lexicon.STATURE[self.said[name]]) for name in names]
        if not traits:
            return f"{article} {self.noun}"
        return f"{article} {_join(traits, _any(self.rng, (', ', ' ', ' and ')))} {self.noun}"

    def _joined(self, verbs: Mapping[str, Sequence[str]], key: str, group: Sequence[Phrase]) -> tuple[str, str]:
        """A verb for ``group``, and its objects. The first two ways to wear also suit glasses and bags."""
        things = {phrase.thing for phrase in group}
        clothes = things & {"upper", "lower"} and not things & {"glasses", "bag", "headwear"}
        options = verbs[key] if clothes or key != "wear" else verbs[key][:2]
        return _usual(self.rng, options), _join([phrase.text for phrase in group], self.last)

    def _main(self, phrases: Sequence[Phrase], plural: bool = False) -> str:
        """Main-clause verbs with their objects: "wears a, b and c, and carries d"."""
        groups = _grouped(phrases)
        joined = [self._joined(lexicon.VERBS, verb, group) for verb, group in groups.items()]
        crowded = any(len(group) > 1 for group in groups.values())
        told = [f"{verb.split(', ')[int(plural)]} {objects}" for verb, objects in joined]
        return _join(told, ", and " if crowded else " and ")

    def _attached(self, phrases: Sequence[Phrase]) -> str:
        """What can follow a noun: "with a, wearing b and c, carrying d"."""
        groups = sorted(_grouped(phrases).items(), key=lambda group: group[0] != "have")
        parts = [" ".join(self._joined(lexicon.PARTICIPLES, verb, group)) for verb, group in groups]
        space = " " if groups[0][0] == "have" and " in a " not in parts[0] and self.rng.random() < 0.6 else ", "
        return parts[0] if len(parts) == 1 else parts[0] + space + _join(parts[1:], _any(self.rng, (", ", " and ")))

    def _told(self, phrases: list[Phrase]) -> list[str]:
        """The description as sentences of one to five things each."""
        if not phrases:
            return [_any(self.rng, _BARE).format(self._subject("a"))]
        parts, rest = [], phrases
        while rest:
            size = int(self.rng.choice([1, 2, 3, 4, 5], p=[0.12, 0.26, 0.3, 0.2, 0.12]))
            parts.append(rest[:size])
            rest = rest[size:]
        return [self._first(parts[0]), *(self._further(part) for part in parts[1:])]

    def _first(self, phrases: list[Phrase]) -> str:
        draw, who = self.rng.random(), self._subject("a")
        if draw < 0.16:
            return self._fill(_any(self.rng, lexicon.OPENINGS), who=who, what=self._attached(phrases))
        if draw < 0.30:
            return f"{who} {self._attached(phrases)}"
        if draw < 0.38 and len(phrases) > 1 and phrases[0].verb == "wear":
            fronted = " ".join(self._joined({"wear": ("wearing", "wearing", "dressed in")}, "wear", phrases[:1]))
            return f"{fronted}, {self._subject(_any(self.rng, ('a', 'this', 'the')))} {self._main(phrases[1:])}"
        who = self._subject(_any(self.rng, ("the", "a", "a", "this")))
        attached = [p for p in phrases if p.thing in ("hair", "glasses")] if self.rng.random() < 0.6 else []
        if not attached and self.rng.random() < 0.3:
            attached = [p for p in phrases if p.thing == "upper"]
        if attached and len(attached) < len(phrases):
            word = "in" if attached[0].thing == "upper" else "with"
            rest = [p for p in phrases if p not in attached]
            return f"{who} {word} {_join([p.text for p in attached])} {self._main(rest)}"
        return f"{who} {self._main(phrases)}"

    def _further(self, phrases: list[Phrase]) -> str:
        if len(phrases) == 1 and phrases[0].clauses and self.rng.random() < 0.65:
            return _any(self.rng, phrases[0].clauses)
        if len(phrases) == 2 and phrases[0].clauses and phrases[1].clauses and self.rng.random() < 0.35:
            one, other = (_any(self.rng, phrase.clauses) for phrase in phrases)
            return one + _any(self.rng, (" and ", ", and ", ", while ")) + other
        if self.rng.random() < 0.25:
            return f"the {self.noun} {self._main(phrases)}"
        return f"{self.words['s']} {self._main(phrases, self.plural_pronoun)}"

    def _listed(self, phrases: list[Phrase]) -> list[str]:
        """Notes instead of sentences."""
        notes = [re.sub(r"^(an?|a pair of) ", "", phrase.text) for phrase in phrases]
        return [", ".join([self._subject("").strip(), *notes])]

    def _finish(self, sentences: list[str]) -> str:
        """Articles, capitals and full stops; a few annotators are careless with the latter two."""
        careless = self.rng.random()
        tidy = [re.sub(r"\s+", " ", s.replace("colored in color", "colored")) for s in sentences]
        tidy = [re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", s).strip() for s in tidy]
        if careless > 0.03:
            tidy = [s[0].upper() + s[1:] for s in tidy]
        return ". ".join(tidy) + ("" if 0.02 < careless < 0.07 else ".")


# -- mistyping --------------------------------------------------------------------------------------------------------


def _misspell(rng: np.random.Generator, text: str, share: float) -> tuple[str, list[dict[str, str]]]:
    """Misspell a share of the words, never one of fewer than four letters."""
    words = list(re.finditer(r"[A-Za-z]+", text))
    long = [word for word in words if len(word[0]) >= 4]
    count = min(_round(rng, share * len(words)), len(long))
    chosen = sorted(rng.choice(len(long), count, replace=False).tolist(), reverse=True) if count else []
    record = []
    for word in (long[index] for index in chosen):  # from the end, so that earlier positions stay valid
        written = _mistype(rng, word[0])
        record.append({"word": word[0], "written": written})
        text = text[: word.start()] + written + text[word.end() :]
    return text, record[::-1]


def _mistype(rng: np.random.Generator, word: str) -> str:
    """A usual misspelling of ``word``, or letters dropped, doubled or swapped; never ``word`` itself."""
    usual = lexicon.MISSPELLINGS.get(word.lower())
    if usual and rng.random() < 0.7:
        written = _any(rng, usual)
        return written.capitalize() if word[0].isupper() else written
    written = word
    while written == word:
        i, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
        middle = ("", word[i] * 2, word[i + 1] + word[i])[kind]
        written = word[:i] + middle + word[i + (2 if kind == 2 else 1) :]
    return written
