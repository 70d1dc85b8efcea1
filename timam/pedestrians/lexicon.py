"""Words and phrases of our captions, as data. ``[a|b]`` stands for any one of a and b; ``{x}`` for a filled-in word.

Placeholders: n noun, c colour, d second colour, p "his", o "him", s "he", is/has "is"/"has" as the subject asks, side.
The first of several words is the usual one.
"""

NOUNS = {
    "man": ("man", "guy", "male", "gentleman", "young man", "adult man", "male pedestrian"),
    "woman": ("woman", "lady", "girl", "young woman", "female", "young lady", "female pedestrian"),
    "": ("person", "pedestrian", "individual", "passer-by"),
}
PRONOUNS = {
    "man": {"s": "he", "p": "his", "o": "him", "is": "is", "has": "has"},
    "woman": {"s": "she", "p": "her", "o": "her", "is": "is", "has": "has"},
    "": {"s": "they", "p": "their", "o": "them", "is": "are", "has": "have"},
}
STATURE = {
    "tall": ("tall", "rather tall", "very tall"), "short": ("short", "rather short", "small"),
    "slim": ("slim", "thin", "slender", "skinny", "lean"),
    "heavy": ("heavyset", "heavy", "stocky", "chubby", "overweight", "plump"),
}  # fmt: skip

COLOUR_WORDS = {
    "black": ("black", "black", "black colored"), "white": ("white", "white", "off-white", "white colored"),
    "grey": ("grey", "gray", "light grey", "gray", "ash grey"), "red": ("red", "bright red", "scarlet", "red colored"),
    "maroon": ("maroon", "dark red", "burgundy", "wine red"), "orange": ("orange", "bright orange", "orange"),
    "yellow": ("yellow", "bright yellow", "mustard yellow", "golden yellow"), "green": ("green", "grass green", "emerald green"),
    "olive": ("olive green", "olive", "army green", "dark green", "moss green"),
    "light blue": ("light blue", "pale blue", "sky blue", "baby blue"), "blue": ("blue", "royal blue", "bright blue", "medium blue"),
    "navy": ("navy blue", "dark blue", "navy", "deep blue"), "purple": ("purple", "violet", "dark purple", "plum"),
    "pink": ("pink", "light pink", "rose pink", "salmon pink"), "brown": ("brown", "dark brown", "chocolate brown", "coffee-colored"),
    "beige": ("beige", "tan", "cream-colored", "khaki", "sand-colored", "cream"),
}  # fmt: skip
HAIR_COLOUR_WORDS = {
    "black": ("black", "dark", "jet black"), "brown": ("brown", "dark brown", "chestnut", "brunette"),
    "blonde": ("blonde", "blond", "fair", "golden"), "grey": ("grey", "gray", "silver", "graying"),
    "red": ("red", "ginger", "auburn", "reddish"),
}  # fmt: skip

# Garment nouns; the key "" serves when the type is left out. A plural noun is marked by a leading "+".
GARMENTS = {
    "t-shirt": ("t-shirt", "tee", "short sleeve shirt", "tee shirt", "short-sleeved top"),
    "shirt": ("shirt", "long sleeve shirt", "button-down shirt", "dress shirt", "collared shirt", "button-up"),
    "blouse": ("blouse", "blouse", "ladies' blouse", "loose blouse"), "tank top": ("tank top", "sleeveless top", "sleeveless shirt", "vest top"),
    "sweater": ("sweater", "pullover", "jumper", "knit sweater", "sweatshirt"),
    "hoodie": ("hoodie", "hooded sweatshirt", "hooded top", "hoody"), "jacket": ("jacket", "short jacket", "zip-up jacket", "windbreaker"),
    "coat": ("coat", "long coat", "overcoat", "trench coat", "winter coat"), "dress": ("dress", "one-piece dress", "frock", "knee-length dress"),
    "": ("top", "upper garment", "top"), "trousers": ("+pants", "+trousers", "+slacks", "+long pants", "+dress pants"),
    "jeans": ("+jeans", "+denim jeans", "+denim pants", "+denims"), "shorts": ("+shorts", "+knee-length shorts", "+short pants", "+bermuda shorts"),
    "leggings": ("+leggings", "+tights", "+skin-tight pants", "+tight leggings"),
    "skirt": ("skirt", "short skirt", "knee-length skirt", "mini skirt"), "long skirt": ("long skirt", "ankle-length skirt", "maxi skirt"),
    "sneakers": ("+sneakers", "+trainers", "+tennis shoes", "+running shoes", "+sports shoes", "+athletic shoes"),
    "leather shoes": ("+dress shoes", "+leather shoes", "+loafers", "+formal shoes"), "boots": ("+boots", "+ankle boots", "+leather boots"),
    "sandals": ("+sandals", "+open-toed sandals", "+flip-flops", "+open sandals"), "high heels": ("+high heels", "+heels", "+pumps", "+high-heeled shoes"),
    "cap": ("cap", "baseball cap", "peaked cap"), "hat": ("hat", "brimmed hat", "sun hat"), "beanie": ("beanie", "knit cap", "woolly hat", "knitted hat"),
    "backpack": ("backpack", "rucksack", "school bag", "knapsack", "back pack"), "handbag": ("handbag", "purse", "hand bag", "tote bag", "pocketbook"),
    "shoulder bag": ("shoulder bag", "messenger bag", "crossbody bag", "side bag", "sling bag", "satchel"),
    "plastic bag": ("plastic bag", "shopping bag", "carrier bag", "grocery bag"), "suitcase": ("suitcase", "rolling suitcase", "luggage case", "trolley case"),
    "glasses": ("+glasses", "+eyeglasses", "+spectacles"), "sunglasses": ("+sunglasses", "+dark glasses", "+shades"),
}  # fmt: skip
UNNAMED = {"upper": ("top", "upper garment"), "dress": ("outfit", "one-piece"), "lower": ("+bottoms", "+bottoms"), "shoes": ("+shoes", "+shoes", "footwear"),
           "headwear": ("headgear", "head covering"), "bag": ("bag", "bag")}  # fmt: skip

# Noun phrases of the upper garment by pattern; the one whose placeholders are all known, and no other, is used.
PATTERN_PHRASES = {
    "": ("a {n}", "a {c} {n}", "a {n} that is {c}", "a {c} and {d} {n}", "a {c} {n} with [some|a bit of] {d}", "a {n} with [some|a bit of] {d} on it"),
    "striped": ("a striped {n}", "a {n} with stripes", "a {c} striped {n}", "a {c} {n} with [horizontal stripes|stripes across it]", "a {n} with {d} stripes",
                "a {c} and {d} striped {n}", "a {c} {n} with {d} [stripes|horizontal stripes|lines]", "a {n} with {c} and {d} stripes", "a striped {n} in {c} and {d}"),
    "checked": ("a [plaid|checkered|checked] {n}", "a {c} [plaid|checkered|checked] {n}", "a {n} with [a {d} check|{d} checks]", "a {c} and {d} [plaid|checkered|checked] {n}",
                "a {c} {n} with a {d} [check|plaid pattern|grid]", "a [plaid|checkered] {n} in {c} and {d}"),
    "dotted": ("a [polka dot|dotted|spotted] {n}", "a {c} [polka dot|dotted|spotted] {n}", "a {n} with {d} [dots|spots|polka dots]", "a {c} {n} with {d} [dots|spots|polka dots]",
               "a {c} {n} covered in {d} dots", "a {c} and {d} [polka dot|spotted] {n}"),
    "logo": ("a {n} with a [logo|print|graphic] on the [front|chest]", "a {c} {n} with a [logo|print|picture|graphic] on [the front|the chest|it]",
             "a {n} with a {d} [logo|print|emblem] on [the front|it]", "a {c} {n} with a {d} [logo|print|graphic|emblem] on the [front|chest]", "a {c} {n} with {d} [print|lettering] on the front"),
    "colour block": ("a two-tone {n}", "a {c} two-tone {n}", "a two-tone {n} that is partly {d}", "a {c} and {d} [two-tone|color block] {n}",
                     "a {n} that is {c} [on top and {d} below|at the top and {d} at the bottom]", "a {c} {n} with a {d} lower half"),
}  # fmt: skip
INNER = ("over a {c} [shirt|top]", "with a {c} [shirt|top] [underneath|under it|inside]", "[open over|worn over] a {c} shirt", "[unzipped|open] to show a {c} [shirt|top]")
INNER_ALONE = ("a {c} [inner shirt|shirt underneath|undershirt]",)
PLAIN_PHRASES = {
    "singular": ("a {n}", "a {c} {n}", "a {n} in {c}"),
    "plural": ("{n}", "a pair of {n}", "{c} {n}", "{c} {n}", "{c} {n}", "a pair of {c} {n}"),
}

# Hair: as a thing one has, and as a clause; the key is the style, "" when it is left out.
HAIR_PHRASES = {
    "short": ("[short|short cropped|short-cut|close-cropped] hair", "[short|short cropped|short-cut|neat short] {c} hair", "{c} hair cut short", "{c} short hair", "a short {c} haircut"),
    "shoulder length": ("[shoulder length|shoulder-length|medium length] hair", "[shoulder length|shoulder-length|medium length] {c} hair", "{c} hair [down to|that reaches] {p} shoulders", "{c} shoulder length hair"),
    "long": ("[long|very long|long straight|long loose] hair", "[long|long straight|long loose|long flowing] {c} hair", "{c} hair [hanging down {p} back|that falls past {p} shoulders]", "{c} long hair"),
    "ponytail": ("a ponytail", "hair [pulled back|tied back|tied] in a ponytail", "a {c} ponytail", "{c} hair [pulled back|tied back|tied|up|gathered] in a ponytail", "{c} hair in a pony tail"),
    "bun": ("hair in a bun", "hair [tied up|put up|pinned] in a bun", "{c} hair in a bun", "{c} hair [tied up|put up|pulled up|pinned] in a bun", "a {c} bun"),
    "bald": ("a bald head", "a shaved head", "no hair"),
    "": ("{c} hair", "{c}-colored hair"),
}  # fmt: skip
HAIR_CLAUSES = {
    "short": ("{p} hair is short", "{p} hair is [short and {c}|{c} and short|{c} and cut short]", "{p} {c} hair is [short|cut short|cropped close]"),
    "shoulder length": ("{p} hair is [shoulder length|medium length]", "{p} {c} hair [reaches|comes down to|touches] {p} shoulders", "{p} hair is {c} and shoulder length"),
    "long": ("{p} hair is long", "{p} hair is [long and {c}|{c} and long]", "{p} {c} hair [hangs down {p} back|is worn loose and long|falls below {p} shoulders]"),
    "ponytail": ("{p} hair is [tied|pulled back] in a ponytail", "{p} {c} hair is [tied|pulled back|worn|up] in a ponytail", "{p} hair is {c} and [tied|pulled] into a ponytail"),
    "bun": ("{p} hair is in a bun", "{p} {c} hair is [in|tied up in|pinned into] a bun"),
    "bald": ("{s} {is} bald", "{s} {has} no hair"),
    "": ("{p} hair is {c}", "{s} {has} {c} hair"),
}  # fmt: skip
# Whole sentences about one thing, for a thing of which only kind and colour are told; {be} agrees with the noun.
CLAUSES = {
    "upper": ("{p} {n} {be} {c}", "the {n} {be} {c}", "the {n} {s} {is} wearing {be} {c}", "{p} {n} {be} {c} in color"),
    "lower": ("{p} {n} {be} {c}", "the {n} {be} {c}", "below that, {s} {has} on {np}", "{p} legs are covered by {np}", "{np} complete{v} the outfit", "on the bottom {s} {is} wearing {np}"),
    "shoes": ("{p} {n} {be} {c}", "the {n} {be} {c}", "on {p} feet {is_} {np}", "{s} {has} {np} on {p} feet", "{p} feet are in {np}", "{p} footwear is {np}"),
    "headwear": ("{p} {n} {be} {c}", "there is {np} on {p} head", "{s} {has} {np} on {p} head", "on {p} head {s} {has} {np}"),
    "glasses": ("{s} {has} {np} on", "{s} {has} {np} on {p} face"),
    "bag": ("{s} {has} {np}", "{s} also {has} {np}", "{s} {is} also carrying {np}", "{s} {has} {np} [too|as well]"),
}  # fmt: skip
PLACES = {  # where a bag is
    "hand": ("in {p} {side} hand", "in the {side} hand", "on the {side} side", "on {p} {side}"),
    "shoulder": ("over {p} {side} shoulder", "on {p} {side} side", "at {p} {side} hip", "hanging on the {side} side", "slung to {p} {side}", "by {p} {side} hip"),
    "back": ("on {p} back", "on the back", "over both shoulders", ""),
    "pull": ("with {p} {side} hand", "on {p} {side}", "on the {side} side", "to {p} {side}"),
    "": ("on {p} {side} side", "on the {side} side", "on {p} {side}"),
}
BAG_PLACE = {"handbag": "hand", "plastic bag": "hand", "shoulder bag": "shoulder", "backpack": "back", "suitcase": "pull", "": ""}

# Verbs: (singular, plural) of a main clause, then what follows a noun.
VERBS = {
    "wear": (("wears", "wear"), ("is wearing", "are wearing"), ("is dressed in", "are dressed in"), ("has on", "have on"), ("wears", "wear"), ("is in", "are in")),
    "have": (("has", "have"), ("has", "have"), ("has got", "have got")),
    "carry": (("carries", "carry"), ("is carrying", "are carrying"), ("has", "have")),
    "hand": (("holds", "hold"), ("is holding", "are holding"), ("carries", "carry"), ("is carrying", "are carrying")),
    "pull": (("pulls", "pull"), ("is pulling", "are pulling"), ("is dragging", "are dragging")),
}  # fmt: skip
PARTICIPLES = {"wear": ("wearing", "wearing", "dressed in", "in", "clad in"), "have": ("with", "who has", "having"),
               "carry": ("carrying", "with"), "hand": ("holding", "carrying"), "pull": ("pulling", "dragging")}  # fmt: skip
OPENINGS = (  # sentences that introduce a person (who) as described (what)
    "there is {who} {what}", "this is {who} {what}", "the [picture|photo|image] shows {who} {what}", "[I see|we see|I can see|you can see] {who} {what}",
    "{who} {what} is [seen|shown|pictured] here", "a [picture|photo|shot] of {who} {what}", "here is {who} {what}", "in the [picture|image] is {who} {what}",
)  # fmt: skip
REMARKS = (
    "the [photo|picture|image] [looks|is] [a bit |quite |very |]blurry", "the [light|lighting] is [poor|bad|dim|very bright]", "[the weather seems nice|it looks like a sunny day|it may be cold outside]",
    "{s} {is} walking [away from|towards|toward] the camera", "{s} {is} walking to the [left|right|other side]", "{s} [seem|look]{plural} [happy|tired|relaxed|sad|bored|serious|confident]",
    "{s} {is} [probably|maybe|perhaps] [on the way to work|going home|waiting for a friend|late for class|out shopping]", "{s} {is} [taking a step|in mid stride|standing still|looking around|strolling along]",
    "[there are other people in the background|nobody else is around|there is a building behind {o}]", "{s} {is} [looking down at the ground|staring ahead|talking to someone|thinking about something]",
    "[it is hard to see the face|the face is not clear|I cannot see the face well]", "{s} might be a [student|tourist|teacher|shopper|local]", "the [street|floor|ground|pavement] looks [clean|wet|dusty|empty]",
    "{s} {is} between [twenty and thirty|thirty and forty|forty and fifty] years old", "{p} arms are [at {p} sides|swinging|slightly bent]", "{s} {is} [in a hurry|taking {p} time]",
    "the camera is [far away|placed up high|not in focus]", "{p} [style|outfit] is [very casual|quite simple|fashionable|nothing special]", "{s} {is} minding {p} own business",
)  # fmt: skip

MISSPELLINGS = {
    "wearing": ("wering", "waering", "wearign"), "carrying": ("carring", "carying"), "backpack": ("backback", "bakpack"), "striped": ("stripped", "stiped"),
    "trousers": ("trowsers", "trouses"), "sneakers": ("sneekers", "snickers"), "shoulder": ("sholder", "shoudler"), "jacket": ("jaket", "jackect"),
    "white": ("whit", "withe"), "black": ("balck", "blak"), "shoes": ("shose", "shooes"), "shirt": ("shrit", "shirtt"), "beige": ("biege", "bege"),
    "sandals": ("sandles",), "ponytail": ("ponytale", "ponnytail"), "purple": ("purpel",), "glasses": ("glassess", "glases"), "sweater": ("sweter", "swetter"),
    "with": ("wiht", "wth"), "brown": ("borwn", "bown"), "blonde": ("blode",), "dressed": ("dresed",), "long": ("lond",), "pants": ("pans", "patns"),
    "plaid": ("plad",), "yellow": ("yelow",), "leather": ("lether",), "green": ("gren",), "their": ("thier",), "woman": ("women", "womam"),
}  # fmt: skip

# What people take one thing for; a mistake comes from here where there is an entry.
CONFUSED_COLOURS = {
    "black": ("navy", "grey", "brown"), "white": ("beige", "grey", "light blue"), "grey": ("black", "white", "light blue"), "red": ("maroon", "orange", "pink"),
    "maroon": ("red", "brown", "purple"), "orange": ("red", "yellow"), "yellow": ("orange", "beige"), "green": ("olive", "blue"), "olive": ("green", "brown", "grey"),
    "light blue": ("blue", "white", "grey"), "blue": ("navy", "light blue", "purple"), "navy": ("black", "blue"), "purple": ("blue", "pink", "maroon"),
    "pink": ("red", "purple", "white"), "brown": ("black", "maroon", "beige"), "beige": ("white", "brown", "yellow"),
}  # fmt: skip
CONFUSED = {
    "gender": {"man": ("woman",), "woman": ("man",)}, "height": {"tall": ("short",), "short": ("tall",)}, "build": {"slim": ("heavy",), "heavy": ("slim",)},
    "bag_side": {"left": ("right",), "right": ("left",)}, "glasses": {"glasses": ("sunglasses",), "sunglasses": ("glasses",)},
    "hair_style": {"short": ("shoulder length",), "shoulder length": ("long", "short"), "long": ("shoulder length", "ponytail"), "ponytail": ("long", "bun"),
                   "bun": ("ponytail", "short"), "bald": ("short",)},
    "hair_colour": {"black": ("brown",), "brown": ("black", "red"), "blonde": ("brown", "grey"), "grey": ("blonde", "black"), "red": ("brown", "blonde")},
    "headwear": {"cap": ("hat", "beanie"), "hat": ("cap",), "beanie": ("cap", "hat")},
    "upper": {"t-shirt": ("shirt", "blouse"), "shirt": ("t-shirt", "jacket"), "blouse": ("shirt", "t-shirt"), "tank top": ("t-shirt",), "sweater": ("hoodie", "jacket"),
              "hoodie": ("sweater", "jacket"), "jacket": ("coat", "hoodie"), "coat": ("jacket",), "dress": ("coat",)},
    "upper_pattern": {"striped": ("checked",), "checked": ("striped",), "dotted": ("logo", "striped"), "logo": ("dotted", "striped"), "colour block": ("striped",)},
    "lower": {"trousers": ("jeans", "leggings"), "jeans": ("trousers",), "shorts": ("skirt", "trousers"), "leggings": ("trousers", "jeans"), "skirt": ("shorts", "long skirt"),
              "long skirt": ("skirt",)},
    "shoes": {"sneakers": ("leather shoes", "boots"), "leather shoes": ("sneakers", "boots"), "boots": ("leather shoes",), "sandals": ("sneakers", "high heels"),
              "high heels": ("sandals", "leather shoes")},
    "bag": {"backpack": ("shoulder bag",), "shoulder bag": ("handbag", "backpack"), "handbag": ("shoulder bag", "plastic bag"), "plastic bag": ("handbag",), "suitcase": ("handbag",)},
}  # fmt: skip
