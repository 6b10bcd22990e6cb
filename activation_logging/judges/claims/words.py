"""Words of biographies: occupations by field, and nationalities that history mixes."""

from __future__ import annotations

FIELDS: dict[str, tuple[str, ...]] = {
    "writing": (
        "writer", "author", "novelist", "poet", "playwright", "dramatist", "essayist", "journalist",
        "satirist", "biographer", "critic", "translator", "short story writer", "humorist",
        "fabulist", "poetess", "diarist", "lyricist", "screenwriter", "editor", "columnist",
    ),
    "music": (
        "composer", "musician", "singer", "pianist", "conductor", "violinist", "cellist", "organist",
        "songwriter", "guitarist", "trumpeter", "saxophonist", "bandleader", "soprano", "tenor",
        "contralto", "drummer", "rapper", "opera singer", "vocalist", "librettist", "lyricist",
    ),
    "art": (
        "painter", "sculptor", "artist", "architect", "engraver", "printmaker", "illustrator",
        "draughtsman", "draftsman", "photographer", "designer", "cartoonist", "animator", "etcher",
        "potter", "lithographer", "fresco painter", "portraitist", "animator", "muralist",
    ),
    "stage": (
        "actor", "actress", "filmmaker", "film director", "dancer", "choreographer", "ballerina",
        "comedian", "screenwriter", "film producer", "playwright", "impresario", "magician",
        "theatre director", "theater director", "entertainer", "vaudevillian", "animator",
        "stage director", "film maker", "movie director",
    ),
    "science": (
        "scientist", "physicist", "chemist", "mathematician", "astronomer", "biologist",
        "naturalist", "botanist", "zoologist", "geologist", "geneticist", "physiologist",
        "biochemist", "physician", "surgeon", "doctor", "anatomist", "astrophysicist",
        "statistician", "logician", "computer scientist", "inventor", "engineer", "ecologist",
        "paleontologist", "palaeontologist", "entomologist", "meteorologist", "microbiologist",
        "bacteriologist", "pathologist", "immunologist", "neurologist", "geometer", "geographer",
        "cartographer", "polymath", "metallurgist", "ornithologist", "crystallographer",
        "psychiatrist", "neuroscientist", "primatologist", "virologist", "aerospace engineer",
        "electrical engineer", "civil engineer", "mechanical engineer", "mineralogist",
        "cosmologist", "natural philosopher", "pharmacologist", "oceanographer", "programmer",
    ),
    "thought": (
        "philosopher", "economist", "sociologist", "psychologist", "psychoanalyst", "historian",
        "theologian", "anthropologist", "linguist", "philologist", "political theorist", "scholar",
        "archaeologist", "archeologist", "logician", "educator", "classicist", "humanist", "polymath",
        "pedagogue", "social scientist", "political scientist", "egyptologist", "orientalist",
        "lexicographer", "political philosopher", "critic", "semiotician",
    ),
    "power": (
        "politician", "statesman", "stateswoman", "president", "prime minister", "king", "queen",
        "emperor", "empress", "monarch", "ruler", "revolutionary", "diplomat", "lawyer", "jurist",
        "activist", "chancellor", "sultan", "pharaoh", "tsar", "czar", "shah", "governor", "senator",
        "dictator", "judge", "reformer", "social reformer", "nationalist", "abolitionist",
        "civil rights activist", "suffragette", "suffragist", "feminist", "leader", "political leader",
        "independence leader", "anarchist", "trade unionist", "first lady", "environmentalist",
        "social activist", "political activist", "labor leader", "communist", "freedom fighter",
        "barrister", "general", "military leader", "soldier", "military commander", "conqueror",
        "admiral", "field marshal", "army officer", "naval officer", "military officer", "warlord",
        "guerrilla leader", "prince", "princess", "duke", "courtier", "spy", "nobleman", "officer",
        "military general", "regent", "caliph", "marshal", "samurai", "humanitarian", "noblewoman",
    ),
    "faith": (
        "pope", "saint", "bishop", "archbishop", "cardinal", "missionary", "priest", "monk", "nun",
        "theologian", "preacher", "religious leader", "mystic", "reformer", "clergyman", "abbot",
        "abbess", "friar", "guru", "imam", "rabbi", "evangelist", "prophet", "spiritual leader",
        "minister", "martyr", "spiritual teacher", "religious reformer", "jesuit",
    ),
    "discovery": (
        "explorer", "navigator", "seafarer", "conquistador", "astronaut", "cosmonaut", "aviator",
        "pilot", "mountaineer", "adventurer", "traveler", "traveller", "sailor", "pirate",
        "privateer", "cartographer", "geographer", "frontiersman", "sea captain", "aviation pioneer",
    ),
    "trade": (
        "businessman", "businesswoman", "entrepreneur", "industrialist", "banker", "philanthropist",
        "merchant", "financier", "investor", "business magnate", "publisher", "fashion designer",
        "inventor", "engineer", "printer", "chef", "business leader", "manufacturer", "magnate",
        "couturier", "producer", "instrument maker", "luthier",
    ),
    "sport": (
        "footballer", "athlete", "tennis player", "basketball player", "boxer", "cricketer",
        "swimmer", "gymnast", "golfer", "racing driver", "chess player", "baseball player",
        "cyclist", "sprinter", "figure skater", "coach", "runner", "skier", "ice hockey player",
        "football player", "soccer player", "wrestler", "professional boxer", "jockey",
        "chess grandmaster", "race car driver", "quarterback", "hockey player", "grandmaster",
    ),
    "health": ("nurse", "physician", "surgeon", "doctor", "midwife", "social worker"),
}  # fmt: skip
"""Occupations, and to which fields they belong; some to several."""

BROADER: dict[str, tuple[str, ...]] = {
    "writer": FIELDS["writing"],
    "author": FIELDS["writing"],
    "artist": FIELDS["art"],
    "musician": FIELDS["music"],
    "scientist": tuple(
        word for word in FIELDS["science"]
        if word not in ("engineer", "inventor", "physician", "surgeon", "doctor", "polymath")
    ),
    "engineer": tuple(word for word in FIELDS["science"] if word.endswith(" engineer")),
    "politician": ("statesman", "stateswoman", "president", "prime minister", "senator"),
    "statesman": ("president", "prime minister", "chancellor"),
    "playwright": ("dramatist",),
    "dramatist": ("playwright",),
    "physician": ("doctor", "surgeon", "neurologist", "psychiatrist"),
    "monarch": ("king", "queen", "emperor", "empress", "sultan", "pharaoh"),
    "ruler": ("king", "queen", "emperor", "empress", "sultan", "pharaoh", "monarch"),
    "activist": ("civil rights activist", "suffragette", "suffragist", "abolitionist"),
    "military leader": ("general", "admiral", "field marshal", "military commander"),
    "businessman": ("industrialist", "entrepreneur", "business magnate", "banker", "merchant"),
    "lawyer": ("barrister", "jurist", "judge"),
    "film director": ("filmmaker",),
    "filmmaker": ("film director",),
    "footballer": ("football player", "soccer player"),
    "football player": ("footballer", "soccer player"),
    "soccer player": ("footballer", "football player"),
    "singer": ("soprano", "tenor", "contralto", "opera singer", "rapper", "vocalist"),
    "sailor": ("navigator", "seafarer"),
    "traveler": ("traveller",),
    "traveller": ("traveler",),
}  # fmt: skip
"""An occupation that is right wherever one of the narrower ones is."""

KIN: tuple[frozenset[str], ...] = tuple(
    frozenset(codes.split())
    for codes in (
        "GB IE US CA AU NZ ZA IN", "DE AT CH PL CZ HU HR SI SK RS IT UA RO RU",
        "RU UA BY LT LV EE GE AM AZ KZ UZ MD FI PL DE US", "NL BE LU FR DE", "DK NO SE FI IS DE",
        "GR TR EG IT CY MK AL BG SY", "IR IQ UZ TJ AF SY EG TM TR SA IN AZ", "IT FR ES VA MT PT MC",
        "ES PT FR", "FR CH BE LU MC DZ", "CN TW HK MN SG", "IN PK BD LK MM", "JP KR KP", "RS HR BA ME SI MK",
        "ES MX CO AR PE CL CU VE BO EC UY PY", "FR US", "DE US", "IT US", "HU US", "IL US DE PL RU GB",
        "EG TN LY DZ MA",
    )
)  # fmt: skip
"""Countries, by ISO 3166 code, whose people history has called by each other's names."""
