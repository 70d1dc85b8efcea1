"""Write the captions of the rendered pedestrians, each by one of several describers, and say what each one states.

A caption is planned as a list of attributes to state (some left out, some stated wrongly), grouped into things (hair,
upper garment, ...), put into sentences, and finally mistyped here and there.

The words are in ``lexicon.json``. A table maps a key to its options, the usual one first; the key ``""`` is of what is
left unsaid. In an option ``[a|b]`` stands for any one of a and b, and ``{x}`` for a word that is filled in: n noun,
c colour, d second colour, a pattern, np noun phrase, side; s, p, o "he", "his", "him"; is, has, does, be, is_ as the
subject or noun asks. A leading ``+`` marks a plural. A word after ``*`` is kept from all training captions.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any, NamedTuple, TypeVar

from timam_lab.pedestrians.attributes import NONE, THINGS, Identity, Rng
from timam_lab.pedestrians.spec import PedestrianSpec

_TEXT = (resources.files("timam_lab.pedestrians") / "lexicon.json").read_text("utf-8")
LEXICON: dict[str, Any] = json.loads(_TEXT)
KEPT_WORDS = frozenset(re.findall(r"\*([\w-]+)", _TEXT))
_ORDERS = tuple(tuple(order) for order in LEXICON["orders"])  # in which people go through a person
T = TypeVar("T")


class Describer(NamedTuple):
    """One of those who write: brief or thorough, with habits that `prefers` derives from the number."""

    number: int
    seed: int

    def prefers(self, what: str, options: int) -> int:
        """This describer's choice among so many options for ``what``, always the same."""
        return zlib.crc32(f"{self.seed} {self.number} {what}".encode()) % options

    @property
    def brevity(self) -> float:
        """From -0.5 (thorough) to 0.5 (terse), spread evenly over the describers."""
        return (self.number * 0.618034 + 0.3) % 1 - 0.5


class Phrase(NamedTuple):
    """One thing in words: ``verb`` keys the lexicon's verbs, ``clauses`` are whole sentences that say the same."""

    thing: str
    verb: str
    text: str
    clauses: list[str]


def write_caption(
    rng: Rng, identity: Identity, hidden: Sequence[str], describer: Describer, spec: PedestrianSpec
) -> dict[str, Any]:
    """Describe ``identity`` as seen in a picture that does not show the attributes ``hidden``.

    Returns:
        text; describer (number); mentioned, omitted (names of attributes, both visible); absent (names of attributes
        said to be absent, rightly); stated (attribute to the values that its words can mean, what is absent included);
        unseen (attribute to the kept word); wrong (list of attribute, true, stated); misspelled (list of word,
        written); remark (bool).
    """
    visible = visible_attributes(identity, hidden)
    spread = spec.habits * describer.brevity + (1 - spec.habits) * rng.uniform(-0.5, 0.5)
    share = spec.omission + min(spec.omission, 1 - spec.omission) * spread
    mentioned = _choose_mentioned(rng, visible, share)
    said, wrong = _make_mistakes(rng, {name: visible[name] for name in mentioned}, spec.mistake)
    absent = _choose_absent(rng, identity, hidden) if rng.random() < spec.negation else []
    remark = bool(rng.random() < spec.remark)
    writer = Writer(rng, said, identity.upper == "dress", describer, spec)
    text, misspelled = _misspell(rng, writer.write(absent, remark), spec.misspelling)
    stated = {name: [value] for name, value in said.items()} | writer.meanings | {name: [NONE] for name in absent}
    if "gender" in said and "age" not in said:
        stated["age"] = ["adult", "elderly"]  # a man is no boy
    return {"text": text, "describer": describer.number, "mentioned": mentioned,
            "omitted": [name for name in visible if name not in said], "absent": absent, "stated": stated,
            "unseen": writer.unseen, "wrong": wrong, "misspelled": misspelled, "remark": remark}  # fmt: skip


def visible_attributes(identity: Identity, hidden: Sequence[str]) -> dict[str, str]:
    """The attributes a truthful and exhaustive describer would state, in the order of THINGS."""
    values = asdict(identity)
    names = [name for group in THINGS.values() for name in group if name not in hidden]
    return {name: values[name] for name in names if values[name] not in (NONE, *LEXICON["unremarkable"])}


def _any(rng: Rng, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _choose_mentioned(rng: Rng, visible: Mapping[str, str], share: float) -> list[str]:
    """Drop a ``share`` of the names: often a whole thing at once, else one attribute; at least one stays."""
    kept = list(visible)
    drop = min(int(share * len(kept) + rng.random()), len(kept) - 1)
    while drop > 0:
        things = [[name for name in group if name in kept] for group in THINGS.values()]
        groups = [group for group in things if 0 < len(group) <= drop and group[0] != "gender"]
        gone = _any(rng, groups) if groups and rng.random() < 0.6 else [_any(rng, kept)]
        if gone[0] in ("gender", "age", "upper", "lower") and rng.random() < 0.8 and len(kept) > 3:
            continue  # hardly anyone leaves these out
        kept = [name for name in kept if name not in gone]
        drop -= len(gone)
    if "gender" in kept and visible.get("age") == "child" and "age" not in kept:
        kept.insert(1, "age")  # nobody calls a child a man
    return kept


def _choose_absent(rng: Rng, identity: Identity, hidden: Sequence[str]) -> list[str]:
    """One or two things that the person does not have, as the picture shows."""
    values = asdict(identity)
    unsure = {*hidden, "scarf"} if identity.headwear == "headscarf" else hidden  # that is a scarf in a sense
    absent = [name for name in LEXICON["absent"] if values[name] == NONE and name not in unsure]
    return [str(name) for name in rng.permutation(absent)[: 1 if rng.random() < 0.75 else 2]]


def _make_mistakes(rng: Rng, true: dict[str, str], mistake: float) -> tuple[dict[str, str], list[dict[str, str]]]:
    """State a share ``mistake`` of the attributes wrongly; returns what is said and a record of what is wrong."""
    said, wrong = dict(true), []
    for name, value in true.items():
        if name != "scarf" and rng.random() < mistake:
            said[name] = _confuse(rng, name, value, said)
            wrong.append({"attribute": name, "true": value, "stated": said[name]})
    return said, wrong


def _confuse(rng: Rng, name: str, value: str, said: Mapping[str, str]) -> str:
    """Another value that people take ``value`` for; the two colours of a garment stay different."""
    if name in LEXICON["confused"]:
        return _any(rng, LEXICON["confused"][name][value])
    everything, near = list(LEXICON["colour_words"]), LEXICON["confused_colours"][value]
    taken = {value, said.get("upper_second"), said.get("upper_colour")} if name.startswith("upper") else {value}
    near = near if rng.random() < 0.85 else everything
    return _any(rng, [v for v in near if v not in taken] or [v for v in everything if v not in taken])


def meanings(colour: str, shades: float) -> list[str]:
    """The colours that the usual name of ``colour`` can mean where a share of the shades are called by other names."""
    return [colour, *(shade for shade, names in LEXICON["shades"].items() if colour in names and shades > 0)]


def _fitting(templates: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Templates that use exactly those of n, c, d, a that ``words`` has."""
    return [t for t in templates if set(re.findall(r"\{([ncda])\}", t)) == set(words) & set("ncda")]


def _join(parts: Sequence[str], last: str = " and ") -> str:
    if len(parts) == 2 and not any(" and " in part for part in parts):
        last = last.replace(", and", " and")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


def _grouped(phrases: Sequence[Phrase]) -> dict[str, list[Phrase]]:
    """Phrases by verb, in order of first appearance."""
    return {verb: [p for p in phrases if p.verb == verb] for verb in dict.fromkeys(p.verb for p in phrases)}


class Writer:
    """One describer at one picture: ``said`` maps attributes to the values to state."""

    def __init__(
        self, rng: Rng, said: Mapping[str, str], dress: bool, describer: Describer, spec: PedestrianSpec
    ) -> None:
        self.rng, self.said, self.describer, self.spec = rng, said, describer, spec
        self.dress = dress  # one left unnamed is no "top"
        self.meanings: dict[str, list[str]] = {}  # of attributes whose words can mean several values
        self.unseen: dict[str, str] = {}  # attribute to the kept word that was used
        self.kept = {name for name in said if rng.random() < spec.unseen_words}  # to be told with kept words
        gender, age = said.get("gender", ""), said.get("age", "")
        self.words = LEXICON["pronouns"][gender]
        self.noun = self._word("age" if age in ("child", "elderly") else "gender", LEXICON["nouns"][f"{gender} {age}"])
        self.plural_pronoun = gender == ""
        self.last = ", and " if self._often("serial comma", 0.35) else " and "

    def write(self, absent: Sequence[str], remark: bool) -> str:
        """The whole caption."""
        sentences = self._told(self._phrases())
        attached = absent and self.rng.random() < 0.5  # to the last sentence
        told = [self._fill(self._usual(LEXICON["absent" if attached else "absent_clauses"][name])) for name in absent]
        if attached:
            sentences[-1] += ", with " + _join(told)
        else:
            sentences += told
        if remark:
            where = len(sentences) if self.rng.random() < 0.75 else int(self.rng.integers(1, len(sentences) + 1))
            sentences.insert(where, self._fill(_any(self.rng, LEXICON["remarks"])))
        return self._finish(sentences)

    def _often(self, what: str, share: float) -> bool:
        """Whether to do what a ``share`` of all captions do: some describers nearly always, others nearly never."""
        if self.rng.random() < self.spec.habits:
            return self.describer.prefers(what, 1000) < 1000 * share
        return bool(self.rng.random() < share)

    def _usual(self, options: Sequence[T]) -> T:
        """The describer's favourite or, without habits, the first option half of the time, else any."""
        if self.rng.random() < self.spec.habits:
            return options[max(0, self.describer.prefers(str(options), 2 * len(options)) - len(options))]
        return options[0] if self.rng.random() < 0.55 else _any(self.rng, options)

    def _word(self, name: str, options: Sequence[str], chance: bool = False) -> str:
        """One of the options for attribute ``name``: a kept one if it is to be told so, else one that is not kept."""
        kept, common = [o for o in options if "*" in o], [o for o in options if "*" not in o]
        if name in self.kept and kept:
            option = _any(self.rng, kept)
            self.unseen[name] = re.findall(r"\*([\w-]+)", option)[0]
            return option.replace("*", "")
        return _any(self.rng, common) if chance else self._usual(common)

    def _fill(self, template: str, **words: str) -> str:
        while "[" in template:
            template = re.sub(r"\[([^\[\]]*)\]", lambda m: _any(self.rng, m[1].split("|")), template, count=1)
        return template.format(**{**self.words, **words})

    def _fill_fitting(self, name: str, templates: Sequence[str], words: Mapping[str, str]) -> str:
        return self._fill(self._word(name, _fitting(templates, words), chance=True), **words)

    def _phrases(self) -> list[Phrase]:
        """What is said of each thing, in this describer's order."""
        order = self._usual(_ORDERS)
        makers = {"hair": self._hair, "bag": self._bag, "upper": self._upper}
        told = [thing for thing in order if set(THINGS[thing]) & set(self.said)]
        return [makers[thing]() if thing in makers else self._worn(thing) for thing in told]

    def _colour(self, name: str, key: str = "c", other: str = "") -> dict[str, str]:
        """The word for a colour that is to be told, under the name it has in templates; not the word ``other``."""
        if name not in self.said:
            return {}
        value = self.said[name]
        if name == "hair_colour":
            return {key: self._word(name, LEXICON["hair_colour_words"][value])}
        names = LEXICON["shades"].get(value, [])
        loose = self.describer.prefers(f"shade {value}", 1000) < 1000 * self.spec.shades
        called = names[self.describer.prefers(value, len(names))] if names and loose else value
        if name in self.kept or LEXICON["colour_words"][called][0] == other:
            called = value
        usual = LEXICON["colour_words"][called][0]
        word = usual if called != value else self._word(name, LEXICON["colour_words"][value])
        if word == usual:
            self.meanings[name] = meanings(called, self.spec.shades)
        return {key: word}

    def _noun(self, thing: str) -> tuple[str, bool]:
        """A noun for a thing worn or carried, and whether it is plural."""
        name = "upper" if thing == "dress" else thing
        kind = self.said.get(name)
        noun = self._word(name, LEXICON["garments"][kind] if kind else LEXICON["unnamed"][thing])
        return noun.removeprefix("+"), noun.startswith("+")

    def _clauses(self, thing: str, words: Mapping[str, str], text: str, plural: bool = False) -> list[str]:
        """Whole sentences that say the same as ``text``."""
        verb = ("are", "") if plural and not text.startswith("a pair") else ("is", "s")
        more = {"np": text, "be": "are" if plural else "is", "is_": verb[0], "v": verb[1]}
        every = LEXICON["clauses"][thing]
        templates = [t for t in every if "{np}" in t] + _fitting(every, words)
        return [self._fill(t, **words, **more) for t in templates]

    def _hair(self) -> Phrase:
        words, style = self._colour("hair_colour"), self.said.get("hair_style", "")
        text = self._fill_fitting("hair_style", LEXICON["hair_phrases"][style], words)
        clauses = [] if "hair_style" in self.unseen else _fitting(LEXICON["hair_clauses"][style], words)
        return Phrase("hair", "have", text, [self._fill(clause, **words) for clause in clauses])

    def _worn(self, thing: str) -> Phrase:
        noun, plural = self._noun(thing)
        words = {"n": noun, **self._colour(f"{thing}_colour")}
        text = self._fill_fitting("", LEXICON["plain_phrases"]["plural" if plural else "singular"], words)
        if noun in ("footwear", "headgear"):
            text = text.removeprefix("a ")
        return Phrase(thing, "wear", text, self._clauses(thing, words, text, plural))

    def _upper(self) -> Phrase:
        pattern, inner = self.said.get("upper_pattern", ""), "inner_colour" in self.said
        words = {"n": self._noun("dress" if self.dress else "upper")[0], **self._colour("upper_colour")}
        words |= self._colour("upper_second", "d", words.get("c", ""))
        table = LEXICON["pattern_phrases"]
        templates = table[pattern if pattern in table else "any"]
        by_adjective = pattern in LEXICON["patterns"] and ("upper_pattern" in self.kept or self.rng.random() < 0.6)
        if by_adjective or not _fitting(templates, words):
            words, templates = {**words, "a": self._word("upper_pattern", LEXICON["patterns"][pattern])}, table["any"]
        told = any(name in self.said for name in THINGS["upper"][:4])
        text = self._fill_fitting("upper_pattern", templates, words) if told else ""
        clauses = [] if pattern or "d" in words or inner else self._clauses("upper", words, text)
        if inner:
            below = _any(self.rng, LEXICON["inner"]["over" if told else "alone"])
            text = f"{text} {self._fill(below, **self._colour('inner_colour'))}".strip()
        return Phrase("upper", "wear", text, clauses)

    def _bag(self) -> Phrase:
        kind, side = self.said.get("bag", ""), self.said.get("bag_side")
        words = {"n": self._noun("bag")[0], **self._colour("bag_colour")}
        text = self._fill_fitting("", LEXICON["plain_phrases"]["singular"][:2], words)
        if side or kind == "backpack":
            where = "shoulder bag" if kind == "backpack" and side else kind
            text += " " + self._fill(_any(self.rng, LEXICON["places"][where]), side=side or "")
        verb = LEXICON["bag_verbs"].get(kind, "carry")
        if kind in ("backpack", "shoulder bag") and self.rng.random() < 0.4:
            verb = "wear"
        return Phrase("bag", verb, text, self._clauses("bag", words, text))

    def _subject(self, article: str) -> str:
        traits = [self._word(n, LEXICON["stature"][self.said[n]]) for n in ("height", "build") if n in self.said]
        told = f"{_join(traits, _any(self.rng, (', ', ' ', ' and ')))} " if traits else ""
        return f"{article} {told}{self.noun}"

    def _joined(self, verbs: Mapping[str, Sequence[str]], key: str, group: Sequence[Phrase]) -> tuple[str, str]:
        """A verb for ``group``, and its objects. The first two ways to wear also suit glasses and bags."""
        things = {phrase.thing for phrase in group}
        clothes = things & {"upper", "lower"} and not things & {"glasses", "bag", "headwear", "scarf"}
        options = verbs[key] if clothes or key != "wear" else verbs[key][:1]
        return self._usual(options), _join([phrase.text for phrase in group], self.last)

    def _main(self, phrases: Sequence[Phrase], plural: bool = False) -> str:
        """Main-clause verbs with their objects: "wears a, b and c, and carries d"."""
        groups = _grouped(phrases)
        joined = [self._joined(LEXICON["verbs"], verb, group) for verb, group in groups.items()]
        crowded = any(len(group) > 1 for group in groups.values())
        told = [f"{verb.split(', ')[plural]} {objects}" for verb, objects in joined]
        return _join(told, ", and " if crowded else " and ")

    def _attached(self, phrases: Sequence[Phrase]) -> str:
        """What can follow a noun: "with a, wearing b and c, carrying d"."""
        groups = sorted(_grouped(phrases).items(), key=lambda group: group[0] != "have")
        parts = [" ".join(self._joined(LEXICON["participles"], verb, group)) for verb, group in groups]
        space = " " if groups[0][0] == "have" and " in a " not in parts[0] and self.rng.random() < 0.6 else ", "
        return parts[0] if len(parts) == 1 else parts[0] + space + _join(parts[1:], _any(self.rng, (", ", " and ")))

    def _told(self, phrases: list[Phrase]) -> list[str]:
        """The description as sentences of one to five things each."""
        if not phrases:
            return [_any(self.rng, LEXICON["bare"]).format(who=self._subject("a"))]
        parts: list[list[Phrase]] = []
        while phrases:
            size = int(self.rng.choice([1, 2, 3, 4, 5], p=[0.12, 0.26, 0.3, 0.2, 0.12]))
            parts, phrases = [*parts, phrases[:size]], phrases[size:]
        return [self._first(parts[0]), *(self._further(part) for part in parts[1:])]

    def _first(self, phrases: list[Phrase]) -> str:
        draw, who = self.rng.random(), self._subject("a")
        if self._often("opening", 0.16):
            return self._fill(self._usual(LEXICON["openings"]), who=who, what=self._attached(phrases))
        if draw < 0.17:
            return f"{who} {self._attached(phrases)}"
        if draw < 0.27 and len(phrases) > 1 and phrases[0].verb == "wear":
            fronted = " ".join(self._joined({"wear": ("wearing", "dressed in")}, "wear", phrases[:1]))
            return f"{fronted}, {who} {self._main(phrases[1:])}"
        who = _any(self.rng, ("the", "a", "a", "this")) + who[1:]
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

    def _finish(self, sentences: list[str]) -> str:
        """Articles, capitals and full stops; a few describers are careless with the latter two."""
        tidy = [re.sub(r"\s+", " ", s.replace("colored in color", "colored")) for s in sentences]
        tidy = [re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", s).strip() for s in tidy]
        if not self._often("lower case", 0.03):
            tidy = [s[0].upper() + s[1:] for s in tidy]
        return ". ".join(tidy) + ("" if self._often("no full stop", 0.05) else ".")


def _misspell(rng: Rng, text: str, share: float) -> tuple[str, list[dict[str, str]]]:
    """Misspell a share of the words, never one of fewer than four letters."""
    words = list(re.finditer(r"[A-Za-z]+", text))
    long = [word for word in words if len(word[0]) >= 4]
    count = min(int(share * len(words) + rng.random()), len(long))
    record = []
    for index in sorted(rng.permutation(len(long))[:count].tolist())[::-1]:  # from the end: positions stay valid
        word, written = long[index], _mistype(rng, long[index][0])
        record.append({"word": word[0], "written": written})
        text = text[: word.start()] + written + text[word.end() :]
    return text, record[::-1]


def _mistype(rng: Rng, word: str) -> str:
    """A usual misspelling of ``word``, or a letter dropped, doubled or swapped; no kept word."""
    usual = LEXICON["misspellings"].get(word.lower())
    if usual and rng.random() < 0.7:
        written = _any(rng, usual)
        return written.capitalize() if word[0].isupper() else written
    written = word
    while written == word or written.lower() in KEPT_WORDS:
        i, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
        middle = ("", word[i] * 2, word[i + 1] + word[i])[kind]
        written = word[:i] + middle + word[i + (2 if kind == 2 else 1) :]
    return written
