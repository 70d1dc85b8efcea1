"""Words and phrases of our captions, as data.

A row of a table is ``key: value / value / ...``, the usual value first; ``*`` is the key of what is left unsaid. In a
value ``[a|b]`` stands for any one of a and b, and ``{x}`` for a word that is filled in: n noun, c colour, d second
colour, np noun phrase, side; s, p, o "he", "his", "him"; is, has, be, is_ "is" or "has" as the subject or noun asks.
"""

from __future__ import annotations

import re


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in re.sub(r"\s+", " ", text).split("/"))


def _table(text: str) -> dict[str, tuple[str, ...]]:
    rows = re.sub(r"\n\s+", " ", text.strip()).splitlines()  # an indented line continues the one above
    keys, values = zip(*(row.split(":", 1) for row in rows), strict=True)
    return {"" if key == "*" else key: _items(value) for key, value in zip(keys, values, strict=True)}


NOUNS = _table("""
man: man / guy / male / gentleman / young man / fellow
woman: woman / lady / girl / young woman / female / young lady
*: person / pedestrian / individual / passer-by
""")
PRONOUNS = {
    "man": {"s": "he", "p": "his", "o": "him", "is": "is", "has": "has"},
    "woman": {"s": "she", "p": "her", "o": "her", "is": "is", "has": "has"},
    "": {"s": "they", "p": "their", "o": "them", "is": "are", "has": "have"},
}
STATURE = _table("""
tall: tall / rather tall / very tall
short: short / rather short / small
slim: slim / thin / slender / skinny / lean
heavy: heavyset / heavy / stocky / chubby / overweight / plump
""")

COLOUR_WORDS = _table("""
black: black / black / black colored
white: white / white / off-white / white colored
grey: grey / gray / light grey / gray / ash grey
red: red / bright red / scarlet / red colored
maroon: maroon / dark red / burgundy / wine red
orange: orange / bright orange / orange
yellow: yellow / bright yellow / mustard yellow / golden yellow
green: green / grass green / emerald green
olive: olive green / olive / army green / dark green / moss green
light blue: light blue / pale blue / sky blue / baby blue
blue: blue / royal blue / bright blue / medium blue
navy: navy blue / dark blue / navy / deep blue
purple: purple / violet / dark purple / plum
pink: pink / light pink / rose pink / salmon pink
brown: brown / dark brown / chocolate brown / coffee-colored
beige: beige / tan / cream-colored / khaki / sand-colored / cream
""")
HAIR_COLOUR_WORDS = _table("""
black: black / dark / jet black
brown: brown / dark brown / chestnut / brunette
blonde: blonde / blond / fair / golden
grey: grey / gray / silver / graying
red: red / ginger / auburn / reddish
""")

# Nouns by type; a plural is marked by a leading "+".
GARMENTS = _table("""
t-shirt: t-shirt / tee / short sleeve shirt / tee shirt / short-sleeved top
shirt: shirt / long sleeve shirt / button-down shirt / dress shirt / collared shirt / button-up
blouse: blouse / blouse / ladies' blouse / loose blouse
tank top: tank top / sleeveless top / sleeveless shirt / vest top
sweater: sweater / pullover / jumper / knit sweater / sweatshirt
hoodie: hoodie / hooded sweatshirt / hooded top / hoody
jacket: jacket / short jacket / zip-up jacket / windbreaker
coat: coat / long coat / overcoat / trench coat / winter coat
dress: dress / one-piece dress / frock / knee-length dress
trousers: +pants / +trousers / +slacks / +long pants / +dress pants
jeans: +jeans / +denim jeans / +denim pants / +denims
shorts: +shorts / +knee-length shorts / +short pants / +bermuda shorts
leggings: +leggings / +tights / +skin-tight pants / +tight leggings
skirt: skirt / short skirt / knee-length skirt / mini skirt
long skirt: long skirt / ankle-length skirt / maxi skirt
sneakers: +sneakers / +trainers / +tennis shoes / +running shoes / +sports shoes / +athletic shoes
leather shoes: +dress shoes / +leather shoes / +loafers / +formal shoes
boots: +boots / +ankle boots / +leather boots
sandals: +sandals / +open-toed sandals / +flip-flops / +open sandals
high heels: +high heels / +heels / +pumps / +high-heeled shoes
cap: cap / baseball cap / peaked cap
hat: hat / brimmed hat / sun hat
beanie: beanie / knit cap / woolly hat / knitted hat
backpack: backpack / rucksack / school bag / knapsack / back pack
handbag: handbag / purse / hand bag / tote bag / pocketbook
shoulder bag: shoulder bag / messenger bag / crossbody bag / side bag / sling bag / satchel
plastic bag: plastic bag / shopping bag / carrier bag / grocery bag
suitcase: suitcase / rolling suitcase / luggage case / trolley case
glasses: +glasses / +eyeglasses / +spectacles
sunglasses: +sunglasses / +dark glasses / +shades
""")
UNNAMED = _table("""
upper: top / upper garment
dress: outfit / one-piece
lower: +bottoms / +bottoms
shoes: +shoes / +shoes / footwear
headwear: headgear / head covering
bag: bag / bag
""")  # when the type is not told

# Noun phrases; the one that uses exactly those of n, c, d that are to be told fits.
PATTERN_PHRASES = _table("""
*: a {n} / a {c} {n} / a {n} that is {c} / a {c} and {d} {n} / a {c} {n} with [some|a bit of] {d} / a {n}
  with [some|a bit of] {d} on it
striped: a striped {n} / a {n} with stripes / a {c} striped {n} / a {c} {n} with [horizontal stripes|stripes
  across it] / a {n} with {d} stripes / a {c} and {d} striped {n} / a {c} {n} with {d} [stripes|horizontal
  stripes|lines] / a {n} with {c} and {d} stripes / a striped {n} in {c} and {d}
checked: a [plaid|checkered|checked] {n} / a {c} [plaid|checkered|checked] {n} / a {n} with [a {d} check|{d}
  checks] / a {c} and {d} [plaid|checkered|checked] {n} / a {c} {n} with a {d} [check|plaid pattern|grid] /
  a [plaid|checkered] {n} in {c} and {d}
dotted: a [polka dot|dotted|spotted] {n} / a {c} [polka dot|dotted|spotted] {n} / a {n} with {d}
  [dots|spots|polka dots] / a {c} {n} with {d} [dots|spots|polka dots] / a {c} {n} covered in {d} dots / a
  {c} and {d} [polka dot|spotted] {n}
logo: a {n} with a [logo|print|graphic] on the [front|chest] / a {c} {n} with a [logo|print|picture|graphic]
  on [the front|the chest|it] / a {n} with a {d} [logo|print|emblem] on [the front|it] / a {c} {n} with a
  {d} [logo|print|graphic|emblem] on the [front|chest] / a {c} {n} with {d} [print|lettering] on the front
colour block: a two-tone {n} / a {c} two-tone {n} / a two-tone {n} that is partly {d} / a {c} and {d}
  [two-tone|color block] {n} / a {n} that is {c} [on top and {d} below|at the top and {d} at the bottom] / a
  {c} {n} with a {d} lower half
""")
PLAIN_PHRASES = _table("""
singular: a {n} / a {c} {n} / a {n} in {c}
plural: {n} / a pair of {n} / {c} {n} / {c} {n} / {c} {n} / a pair of {c} {n}
""")
INNER = _table("""
over: over a {c} [shirt|top] / with a {c} [shirt|top] [underneath|under it|inside] / [open over|worn over] a
  {c} shirt / [unzipped|open] to show a {c} [shirt|top]
alone: a {c} [inner shirt|shirt underneath|undershirt]
""")  # what shows below an open jacket
HAIR_PHRASES = _table("""
short: [short|short cropped|short-cut|close-cropped] hair / [short|short cropped|short-cut|neat short] {c}
  hair / {c} hair cut short / {c} short hair / a short {c} haircut
shoulder length: [shoulder length|shoulder-length|medium length] hair / [shoulder
  length|shoulder-length|medium length] {c} hair / {c} hair [down to|that reaches] {p} shoulders / {c}
  shoulder length hair
long: [long|very long|long straight|long loose] hair / [long|long straight|long loose|long flowing] {c} hair
  / {c} hair [hanging down {p} back|that falls past {p} shoulders] / {c} long hair
ponytail: a ponytail / hair [pulled back|tied back|tied] in a ponytail / a {c} ponytail / {c} hair [pulled
  back|tied back|tied|up|gathered] in a ponytail / {c} hair in a pony tail
bun: hair in a bun / hair [tied up|put up|pinned] in a bun / {c} hair in a bun / {c} hair [tied up|put
  up|pulled up|pinned] in a bun / a {c} bun
bald: a bald head / a shaved head / no hair
*: {c} hair / {c}-colored hair
""")

# Whole sentences about one thing.
HAIR_CLAUSES = _table("""
short: {p} hair is short / {p} hair is [short and {c}|{c} and short|{c} and cut short] / {p} {c} hair is
  [short|cut short|cropped close]
shoulder length: {p} hair is [shoulder length|medium length] / {p} {c} hair [reaches|comes down to|touches]
  {p} shoulders / {p} hair is {c} and shoulder length
long: {p} hair is long / {p} hair is [long and {c}|{c} and long] / {p} {c} hair [hangs down {p} back|is worn
  loose and long|falls below {p} shoulders]
ponytail: {p} hair is [tied|pulled back] in a ponytail / {p} {c} hair is [tied|pulled back|worn|up] in a
  ponytail / {p} hair is {c} and [tied|pulled] into a ponytail
bun: {p} hair is in a bun / {p} {c} hair is [in|tied up in|pinned into] a bun
bald: {s} {is} bald / {s} {has} no hair
*: {p} hair is {c} / {s} {has} {c} hair
""")
CLAUSES = _table("""
upper: {p} {n} {be} {c} / the {n} {be} {c} / the {n} {s} {is} wearing {be} {c} / {p} {n} {be} {c} in color
lower: {p} {n} {be} {c} / the {n} {be} {c} / below that, {s} {has} on {np} / {p} legs are covered by {np} /
  {np} complete{v} the outfit / on the bottom {s} {is} wearing {np}
shoes: {p} {n} {be} {c} / the {n} {be} {c} / on {p} feet {is_} {np} / {s} {has} {np} on {p} feet / {p} feet
  are in {np}
headwear: {p} {n} {be} {c} / there is {np} on {p} head / {s} {has} {np} on {p} head / on {p} head {s} {has}
  {np}
glasses: {s} {has} {np} on / {s} {has} {np} on {p} face
bag: {s} {has} {np} / {s} also {has} {np} / {s} {is} also carrying {np} / {s} {has} {np} [too|as well]
""")

BAG_PLACE = {
    "handbag": "hand",
    "plastic bag": "hand",
    "shoulder bag": "shoulder",
    "backpack": "back",
    "suitcase": "pull",
    "": "",
}
PLACES = _table("""
hand: in {p} {side} hand / in the {side} hand / on the {side} side / on {p} {side}
shoulder: over {p} {side} shoulder / on {p} {side} side / at {p} {side} hip / hanging on the {side} side /
  slung to {p} {side} / by {p} {side} hip
back: on {p} back / on the back / over both shoulders
pull: with {p} {side} hand / on {p} {side} / on the {side} side / to {p} {side}
*: on {p} {side} side / on the {side} side / on {p} {side}
""")

# Verbs of a main clause, singular and plural; then what follows a noun. The first two ways to wear suit everything.
VERBS = {
    key: tuple((v.split(", ")[0], v.split(", ")[1]) for v in row)
    for key, row in _table("""
wear: wears, wear / is wearing, are wearing / has on, have on / is dressed in, are dressed in / wears, wear
  / is in, are in
have: has, have / has, have / has got, have got
carry: carries, carry / is carrying, are carrying / has, have
hand: holds, hold / is holding, are holding / carries, carry / is carrying, are carrying
pull: pulls, pull / is pulling, are pulling / is dragging, are dragging
""").items()
}
PARTICIPLES = _table("""
wear: wearing / wearing / dressed in / in / wearing / clad in
have: with / who has / having
carry: carrying / with
hand: holding / carrying
pull: pulling / dragging
""")

# Sentences that introduce a person (who) as described (what), and some that say nothing about them.
OPENINGS = _items("""
there is {who} {what} / this is {who} {what} / the [picture|photo|image] shows {who} {what} / [I see|we
see|I can see|you can see] {who} {what} / {who} {what} is [seen|shown|pictured] here / a
[picture|photo|shot] of {who} {what} / here is {who} {what} / in the [picture|image] is {who} {what}
""")
REMARKS = _items("""
the [photo|picture|image] [looks|is] [a bit |quite |very |]blurry / the [light|lighting] is
[poor|bad|dim|very bright] / [the weather seems nice|it looks like a sunny day|it may be cold outside] / {s}
{is} walking [away from|towards|toward] the camera / {s} {is} walking to the [left|right|other side] / {s}
[seem|look]{plural} [happy|tired|relaxed|sad|bored|serious|confident] / {s} {is} [probably|maybe|perhaps]
[on the way to work|going home|waiting for a friend|late for class|out shopping] / {s} {is} [taking a
step|in mid stride|standing still|looking around|strolling along] / [there are other people in the
background|nobody else is around|there is a building behind {o}] / {s} {is} [looking down at the
ground|staring ahead|talking to someone|thinking about something] / [it is hard to see the face|the face is
not clear|I cannot see the face well] / {s} might be a [student|tourist|teacher|shopper|local] / the
[street|floor|ground|pavement] looks [clean|wet|dusty|empty] / {s} {is} between [twenty and thirty|thirty
and forty|forty and fifty] years old / {p} arms are [at {p} sides|swinging|slightly bent] / {s} {is} [in a
hurry|taking {p} time] / the camera is [far away|placed up high|not in focus] / {p} [style|outfit] is [very
casual|quite simple|fashionable|nothing special] / {s} {is} minding {p} own business
""")

MISSPELLINGS = _table("""
wearing: wering / waering / wearign
carrying: carring / carying
backpack: backback / bakpack
striped: stripped / stiped
trousers: trowsers / trouses
sneakers: sneekers / snickers
shoulder: sholder / shoudler
jacket: jaket / jackect
white: whit / withe
black: balck / blak
shoes: shose / shooes
shirt: shrit / shirtt
beige: biege / bege
sandals: sandles
ponytail: ponytale / ponnytail
purple: purpel
glasses: glassess / glases
sweater: sweter / swetter
with: wiht / wth
brown: borwn / bown
blonde: blode
dressed: dresed
long: lond
pants: pans / patns
plaid: plad
yellow: yelow
leather: lether
green: gren
their: thier
woman: women / womam
""")

# What people take one thing for.
CONFUSED_COLOURS = _table("""
black: navy / grey / brown
white: beige / grey / light blue
grey: black / white / light blue
red: maroon / orange / pink
maroon: red / brown / purple
orange: red / yellow
yellow: orange / beige
green: olive / blue
olive: green / brown / grey
light blue: blue / white / grey
blue: navy / light blue / purple
navy: black / blue
purple: blue / pink / maroon
pink: red / purple / white
brown: black / maroon / beige
beige: white / brown / yellow
""")
CONFUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": _table("""
man: woman
woman: man
"""),
    "height": _table("""
tall: short
short: tall
"""),
    "build": _table("""
slim: heavy
heavy: slim
"""),
    "bag_side": _table("""
left: right
right: left
"""),
    "glasses": _table("""
glasses: sunglasses
sunglasses: glasses
"""),
    "hair_style": _table("""
short: shoulder length
shoulder length: long / short
long: shoulder length / ponytail
ponytail: long / bun
bun: ponytail / short
bald: short
"""),
    "hair_colour": _table("""
black: brown
brown: black / red
blonde: brown / grey
grey: blonde / black
red: brown / blonde
"""),
    "headwear": _table("""
cap: hat / beanie
hat: cap
beanie: cap / hat
"""),
    "upper": _table("""
t-shirt: shirt / blouse
shirt: t-shirt / jacket
blouse: shirt / t-shirt
tank top: t-shirt
sweater: hoodie / jacket
hoodie: sweater / jacket
jacket: coat / hoodie
coat: jacket
dress: coat
"""),
    "upper_pattern": _table("""
striped: checked
checked: striped
dotted: logo / striped
logo: dotted / striped
colour block: striped
"""),
    "lower": _table("""
trousers: jeans / leggings
jeans: trousers
shorts: skirt / trousers
leggings: trousers / jeans
skirt: shorts / long skirt
long skirt: skirt
"""),
    "shoes": _table("""
sneakers: leather shoes / boots
leather shoes: sneakers / boots
boots: leather shoes
sandals: sneakers / high heels
high heels: sandals / leather shoes
"""),
    "bag": _table("""
backpack: shoulder bag
shoulder bag: handbag / backpack
handbag: shoulder bag / plastic bag
plastic bag: handbag
suitcase: handbag
"""),
}
