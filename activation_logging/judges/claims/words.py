"""Words of biographies: occupations by field, and nationalities that history mixes."""

from __future__ import annotations


def _listed(words: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in words.split(","))


FIELDS: dict[str, tuple[str, ...]] = {
    "writing": _listed("""
        writer, author, novelist, poet, playwright, dramatist, essayist, journalist, satirist,
        biographer, critic, translator, short story writer, humorist, fabulist, poetess,
        diarist, lyricist, screenwriter, editor, columnist
    """),
    "music": _listed("""
        composer, musician, singer, pianist, conductor, violinist, cellist, organist,
        songwriter, guitarist, trumpeter, saxophonist, bandleader, soprano, tenor, contralto,
        drummer, rapper, opera singer, vocalist, librettist, lyricist
    """),
    "art": _listed("""
        painter, sculptor, artist, architect, engraver, printmaker, illustrator, draughtsman,
        draftsman, photographer, designer, cartoonist, animator, etcher, potter, lithographer,
        fresco painter, portraitist, muralist
    """),
    "stage": _listed("""
        actor, actress, filmmaker, film director, dancer, choreographer, ballerina, comedian,
        screenwriter, film producer, playwright, impresario, magician, theatre director, theater
        director, entertainer, vaudevillian, animator, stage director, film maker, movie
        director
    """),
    "science": _listed("""
        scientist, physicist, chemist, mathematician, astronomer, biologist, naturalist,
        botanist, zoologist, geologist, geneticist, physiologist, biochemist, physician,
        surgeon, doctor, anatomist, astrophysicist, statistician, logician, computer scientist,
        inventor, engineer, ecologist, paleontologist, palaeontologist, entomologist,
        meteorologist, microbiologist, bacteriologist, pathologist, immunologist, neurologist,
        geometer, geographer, cartographer, polymath, metallurgist, ornithologist,
        crystallographer, psychiatrist, neuroscientist, primatologist, virologist, aerospace
        engineer, electrical engineer, civil engineer, mechanical engineer, mineralogist,
        cosmologist, natural philosopher, pharmacologist, oceanographer, programmer
    """),
    "thought": _listed("""
        philosopher, economist, sociologist, psychologist, psychoanalyst, historian, theologian,
        anthropologist, linguist, philologist, political theorist, scholar, archaeologist,
        archeologist, logician, educator, classicist, humanist, polymath, pedagogue, social
        scientist, political scientist, egyptologist, orientalist, lexicographer, political
        philosopher, critic, semiotician
    """),
    "power": _listed("""
        politician, statesman, stateswoman, president, prime minister, king, queen, emperor,
        empress, monarch, ruler, revolutionary, diplomat, lawyer, jurist, activist, chancellor,
        sultan, pharaoh, tsar, czar, shah, governor, senator, dictator, judge, reformer, social
        reformer, nationalist, abolitionist, civil rights activist, suffragette, suffragist,
        feminist, leader, political leader, independence leader, anarchist, trade unionist,
        first lady, environmentalist, social activist, political activist, labor leader,
        communist, freedom fighter, barrister, general, military leader, soldier, military
        commander, conqueror, admiral, field marshal, army officer, naval officer, military
        officer, warlord, guerrilla leader, prince, princess, duke, courtier, spy, nobleman,
        officer, military general, regent, caliph, marshal, samurai, humanitarian, noblewoman
    """),
    "faith": _listed("""
        pope, saint, prelate, bishop, archbishop, cardinal, missionary, priest, monk, nun,
        theologian, preacher, religious leader, mystic, reformer, clergyman, abbot, abbess, friar,
        guru, imam, rabbi, evangelist, prophet, spiritual leader, minister, martyr,
        spiritual teacher, religious reformer, jesuit
    """),
    "discovery": _listed("""
        explorer, navigator, seafarer, conquistador, astronaut, cosmonaut, aviator, pilot,
        mountaineer, adventurer, traveler, traveller, sailor, pirate, privateer, cartographer,
        geographer, frontiersman, sea captain, aviation pioneer
    """),
    "trade": _listed("""
        businessman, businesswoman, entrepreneur, industrialist, banker, philanthropist,
        merchant, financier, investor, business magnate, publisher, fashion designer, inventor,
        engineer, printer, chef, business leader, manufacturer, magnate, couturier, producer,
        instrument maker, luthier
    """),
    "sport": _listed("""
        footballer, athlete, tennis player, basketball player, boxer, cricketer, swimmer,
        gymnast, golfer, racing driver, chess player, baseball player, cyclist, sprinter, figure
        skater, coach, runner, skier, ice hockey player, football player, soccer player,
        wrestler, professional boxer, jockey, chess grandmaster, race car driver, quarterback,
        hockey player, grandmaster
    """),
    "health": _listed("""
        nurse, physician, surgeon, doctor, midwife, social worker
    """),
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
        "AU CA GB IE IN NZ US ZA", "AT CH CZ DE HR HU IT PL RO RS RU SI SK UA",
        "AM AZ BY DE EE FI GE KZ LT LV MD PL RU UA US UZ", "BE DE FR LU NL",
        "DE DK FI IS NO SE", "AL BG CY EG GR IT MK SY TR",
        "AF AZ EG IN IQ IR SA SY TJ TM TR UZ", "ES FR IT MC MT PT VA", "ES FR PT",
        "BE CH DZ FR LU MC", "CN HK MN SG TW", "BD IN LK MM PK", "JP KP KR",
        "BA HR ME MK RS SI", "AR BO CL CO CU EC ES MX PE PY UY VE", "FR US", "DE US", "IT US",
        "HU US", "DE GB IL PL RU US", "DZ EG LY MA TN",
    )
)  # fmt: skip
"""Countries, by ISO 3166 code, whose people history has called by each other's names."""
