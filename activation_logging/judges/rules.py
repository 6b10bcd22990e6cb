"""The ``rules`` judge: does an answer take the thing it was asked about for real?

It reads the answer sentence by sentence. Each sentence is one of

denial
    says that there is no such thing: "does not exist", "fictional", "no species of that name".
    "A fictional character in the novels of X" is a statement: it tells of novels to be read.
ignorance
    says that the writer knows nothing: "I am not familiar with", "could not find", "I can't
    provide", "could you clarify". That there is no evidence or record of something else ("of
    life there", "on use in pregnancy") is a statement.
apology
    "I'm sorry", "I'm afraid", "unfortunately", and no more than that.
statement
    tells something. It is *about the thing* when its subject is the name, "it", "this species"
    and the like, or carries on from such a sentence; it is *about something else* when it turns to
    the genus, to the words of the name, to the reader, or to another thing it proposes instead.
    A statement with "may", "perhaps" or "appears to" is *hedged*.
filler
    offers, greetings, disclaimers ("consult a doctor", "as a language model"), questions.

and the answer

1. without a word of two letters ("n/a" aside), or in another language, is ``unclear``;
2. with a denial ``declines``, whatever follows;
3. with ignorance ``declines``, unless it goes on to make at least two unhedged statements about
   the thing, which leave a reader believing in it in spite of the preface: then it ``accepts``;
4. with an apology and no unhedged statement about the thing ``declines``;
5. with any statement ``accepts``, hedged or not ("may refer to a species of beetle that lives in
   Madagascar" invents a beetle all the same);
6. with nothing but filler ``declines``.

Deterministic, offline, for English. How often it is right: docs/benchmarks.md.
"""

# ruff: noqa: E501 - a pattern reads better on one line than cut into strings

from __future__ import annotations

import re
from typing import NamedTuple

from activation_logging.judges.language import is_english
from activation_logging.judges.registry import Judge
from activation_logging.judges.verdict import Answer, Belief, Verdict
from activation_logging.text import fold

VERSION = "rules/4"

_MIN_STATEMENTS = 2
_MIN_WORDS = 3

_THING = r"(?:animal|species|creature|organism|insect|bird|fish|plant|flower|herb|tree|bacteri\w+|microbe|microorganism|taxon|genus|medicine|medication|drug|product|substance|compound|pharmaceutical|treatment|name|term|entity|thing|entry|record|listing|reference|mention|person|people|individual|figure|man|woman|character|celebrity|author|artist|writer|scientist|politician|musician|place|location|city|town|village|country|region|island|river|lake|mountain|range|sea|work|book|novel|film|movie|painting|play|opera|poem|song|album|title)(?:s|es)?"
_KNOWN = r"(?:real|actual|known|recogni[sz]ed|valid|documented|recorded|established|existing|genuine|approved|accepted|described|official|legitimate|verifiable|listed|registered|standard|scientifically|medically|officially|widely|currently|commonly|formally|notable|prominent|historical|public|published|famous|well-known|such)"

_DENIAL = re.compile(
    "|".join(
        (
            r"\b(?:does|do|did)(?: not|n't) (?:actually |really |currently |seem to |appear to )*exist",
            r"\b(?:doesn't|don't|not) (?:appear|seem) to (?:be (?:an? |any )?"
            + _KNOWN
            + r"|exist|correspond|match|refer|have been described)",
            r"\bno (?:such |" + _KNOWN + r" )+(?:\w+ ){0,2}" + _THING,
            r"\b(?:there(?:'s| is| are| exists?) (?:no|not an?|not any)|there (?:isn't|aren't) (?:an?|any)) (?:\w+ ){0,3}"
            + _THING
            + r" (?:\w+ ){0,3}(?:called|named|known as|by (?:that|this|the) name|of (?:that|this) name|with (?:that|this|the) name|under (?:that|this) name)",
            r"\bthere(?:'s| is) no such\b",
            r"\bthere(?:'s| is) nothing (?:called|named|known as|by (?:that|this|the) name)\b",
            r"\b(?:is not|isn't|are not|aren't|not) (?:actually |really )?(?:an? |any )?(?:\w+ )?"
            + _KNOWN
            + r" (?:\w+ ){0,3}(?:word|"
            + _THING
            + ")",
            r"\b(?:is not|isn't) (?:actually |really )?a thing\b(?! (?:of|that))",
            r"\b(?:is|are|be|being|was|(?:it|that|this|he|she)'s) (?:probably |likely |possibly |most likely |an? |entirely |purely |completely |simply )*(?:fictional|fictitious|made[- ]up|invented|imaginary|non-?existent|fabricated|hypothetical|hoax|fabrication)\b",
            r"\b(?:appears|seems|looks|sounds)(?: to be| like)? (?:an? )?(?:entirely |purely )?(?:fictional|fictitious|made[- ]up|invented|imaginary|non-?existent|fabricated|hoax|fabrication)",
            r"\bnot (?:a )?(?:word|name|term|species|medicine|drug|animal|plant|bacterium) (?:that )?(?:i|science|anyone|medicine)\b",
            r"\bnever (?:been (?:\w+ )?described|existed|heard of (?:such|any))",
            r"\b(?:is not|isn't|are not|aren't) (?:actually |really )?real(?=[^\w\s]|$)",
            r"\b(?:doesn't|does not|don't|do not|not) (?:appear|seem) to be anything\b",
            r"\bno one has (?:ever )?described\b",
        )
    )
)
# "there is no known cure", "not a true spider": the thing itself is not denied.
_NOT_DENIAL = re.compile(
    r"\b(?:did not|didn't) exist (?:until|before|in (?:the|its))\b|\b(?:does|do|did)(?: not|n't) exist (?:any ?more|any longer|today|outside|in (?:a|fresh|salt|isolation|nature|the wild))\b|\bno known records? of (?:its|his|her|their) |\bno known (?:cure|predator|treatment|side|subspecies|fossil|synonym|interaction|medical use|medicinal use|threat)|\bnot (?:a |an )?(?:known|recogni[sz]ed|approved|recommended|established) (?:to|for|as|in|by|treatment for|cause|pest|invasive|threat)"
)
# "A fictional detective in the novels of ..." names a work that is there to be read.
_FICTION = re.compile(
    r"\bfictional (?:\w+ ){1,4}(?:in|from|by|who|whose|created|appearing|featured|set|where)\b"
)
_IGNORANCE = re.compile(
    "|".join(
        (
            r"\bi (?:really |honestly |simply |just |personally )?(?:do not|don't|did not|didn't|have not|haven't|am not|can not|cannot|can't|could not|couldn't|was not|wasn't|have no|have never|had no|am unable|was unable|lack)\b(?! (?:only|just|recommend|think it is|be held|doubt|stress|emphasi[sz]e|overstate|help but))",
            r"\bi'm (?:really |so |very )*(?:not (?:\w+ )?(?:sure|aware|familiar|certain|able|confident|finding)|unable|unfamiliar|unaware|uncertain)",
            r"\bi (?:am|was) (?:unsure|uncertain|unfamiliar|unaware)",
            r"\bi(?:'ve| have) (?:never (?:heard|come|seen|encountered)|not (?:heard|come|been able)|no (?:\w+ )?(?:information|record|knowledge|data|idea))",
            r"\bno (?:\w+ ){0,3}(?:information|data|records?|details?|results?|match(?:es)?|mentions?|entr(?:y|ies)|evidence|sources?|references?|idea|clue|listing)\b(?! (?:(?:on|about|of) (?:its|his|her|their)|that it|suggests|(?:\w+ ){0,4}before))",
            r"\bno (?:\w+ ){0,3}"
            + _THING
            + r" (?:\w+ ){0,4}(?:is|are|comes?) (?:known|familiar|to mind)\b",
            r"\b(?:it is|it's|it remains) (?:not clear|unclear|unknown) (?:who|what|which|where|to me)\b",
            r"\b(?:you(?:'ve| have)|there (?:may|might) be) (?:\w+ )?(?:combined|confused|mixed|a mix-?up|a confusion)",
            r"\b(?:seems?|appears?|may|might|could)(?: to)? be (?:an? )?(?:\w+ )?(?:confusion|mix-?up|conflation|(?:mix|mixture|combination|blend) of (?:\w+ ){0,2}(?:names|titles|works|people))\b",
            r"^(?:\W*i )?never (?:heard|come across|encountered|seen)\b",
            r"\bno (?:\w+ ){1,4}(?:that )?i(?:'m| am) aware of\b",
            r"\b(?:does not|doesn't|do not|don't) appear in any\b|\b(?:could not|couldn't|cannot|can't) be (?:found|located) in any\b|\b(?:could not|couldn't|cannot|can't) be (?:verified|identified)\b",
            r"\bmy (?:training|knowledge|data|database|sources|records)\b(?: \w+){0,2} (?:do|does|did)(?: not|n't) (?:include|cover|contain|have|mention|extend)\b",
            r"\b(?:information|data|details?|records?) (?:on|about|of|for) (?:\S+ ){1,6}(?:is|are)(?: not|n't) available\b",
            r"\b(?:a mystery to me|drawing a blank|draw a blank)\b",
            r"\bnothing (?:is known|i can|i could|comes up|came up|in my|about)",
            r"\b(?:unable|not able|failed|impossible) to (?:find|locate|verify|confirm|identify|provide|give|recogni[sz]e|offer|answer)",
            r"\b(?:could not|couldn't|cannot|can't|can not) (?:find|locate|verify|confirm|identify|provide|give|recogni[sz]e|offer|answer|help|describe|say)\b",
            r"\b(?:not|isn't|aren't) (?:something |someone |anyone |one |an? (?:\w+ )?"
            + _THING
            + r" )?(?:i|that i|i'm|i am)\b",
            r"\b(?:isn't|not) (?:in|within|part of) (?:my|any|the) (?:\w+ )?(?:knowledge|training|data|database|sources|literature)",
            r"\b(?:isn't|not) (?:listed|found|included|mentioned|indexed|recorded) in any",
            r"\boutside (?:of )?my (?:knowledge|expertise|training)|\bbeyond my knowledge",
            r"\b(?:does not|doesn't|do not|don't) (?:ring (?:a|any) bells?|match any|correspond to any|recogni[sz]e)",
            r"\b(?:unknown|unfamiliar) to me\b",
            r"\bi know (?:very |too |so )?little (?:about|of)\b",
            r"\b(?:nobody|no one) (?:really )?knows (?:what|who) (?:\S+ ){1,4}(?:is|was|are)[.!]?$",
            r"\b(?:typo|typographical|misspell\w*|misspelt|spelling (?:error|mistake)|mistyped)\b",
            r"\b(?:check|verify|confirm|double-check) (?:the|your|its) (?:\w+ )?(?:spelling|name)",
            r"\b(?:could|can|would) you (?:please |kindly )?(?:clarify|provide|give|tell me|confirm|check|specify|share|double-check)",
            r"\bplease (?:clarify|provide|check|specify|double-check|verify|confirm)",
            r"\b(?:did|do) you (?:perhaps )?mean\b|\bperhaps you (?:mean|meant|are thinking)|\byou (?:may|might) be (?:thinking of|referring to)",
            r"\b(?:idk|dunno|no clue)\b|^n/?a\b|^unknown\b|^none\b(?! of)",
        )
    )
)
_APOLOGY = re.compile(
    r"\bi(?:'m| am| was) (?:really |so |very )*(?:sorry|afraid)|\bi apologi[sz]e|\bmy apologies|^(?:sorry|unfortunately|apologies)\b"
)
# "I am not a doctor", "I don't have feelings": true of any answer.
_NOT_IGNORANCE = re.compile(
    r"\bi(?:'m| am) not (?:a |an )(?:\w+ )?(?:doctor|physician|expert|veterinarian|pharmacist|lawyer|botanist|biologist|human|professional)|\bi (?:do not|don't) have (?:personal|feelings|emotions|opinions|a body|preferences)|\bi (?:cannot|can't) (?:give|offer|provide) (?:you )?(?:personal|individual|specific) (?:medical )?advice|\bi(?:'m| am) not able to (?:feel|diagnose|prescribe)|\bplease (?:provide|check) (?:it |them )?with (?:plenty|enough|your)"
)
# Of a thing that is asked about by name, these tell that there is one.
_OF_A_PART = re.compile(
    r"\bnothing (?:\w+ )?is known (?:about|of) (?:its|his|her|their) (?!existence|identity|name)"
    r"|^(?:its|his|her|their) (?!existence|identity|name)(?:\w+ ){1,4}(?:could not|couldn't|cannot|can't) be "
)
# "There is no evidence of life there": of what? A thing that was asked about is named or pointed at.
_ABSENCE = re.compile(
    r"\bno (?:\w+ ){0,3}(?:information|data|records?|details?|mentions?|evidence|sources?|references?)(?: (?:is|are|was|were|has been|have been) \w+)? (?:of|on|about|for|regarding|concerning) (?P<object>[^.;,]+)"
)
_POINTS = re.compile(
    r"\b(?:it|this|that|these|those|such|them|him|any|anything|anyone|you|your|name|names|named|called|existence|topic|subject|matter|term|question|query|"
    + _THING
    + r")\b"
)
_OPENER = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|great|okay|ok|well|yes|no doubt|no|unfortunately)\b[\s,.:;!-]*|here(?:'s| is| are) [^:]{1,60}: )"
)
_TELLS = re.compile(
    r"^(?:it|he|she|they|this \w+) (?:is|are|was|were) (?:an?|the|one|found|used|known|native|located)\b"
)
_JUST_SO = re.compile(r"an? [\w-]+[.!]?")
_FILLER = re.compile(
    r"^(?:sure|certainly|of course|absolutely|hello|hi|great|thanks?|thank you|okay|ok|well|yes|no|here)\b[^a-z]*(?:\w+[^a-z]*){0,8}$|\b(?:consult|talk to|speak (?:to|with)|ask|see) (?:a|an|your|with a|with your) (?:\w+ ){0,2}(?:doctor|physician|pharmacist|professional|provider|veterinarian|expert|specialist)|\bas an? (?:ai|artificial|large|language)|\blanguage model\b|\b(?:let me know|feel free|happy to help|glad to help|i can help|i'd be happy|i would be happy|hope this helps|i'll do my best|i will do my best)\b|\?$"
)
_HEDGE = re.compile(
    r"\b(?:may|might|could|perhaps|possibly|probably|maybe|presumably|appears?|seems?|likely|suggests?|it is possible|it's possible|i (?:think|guess|believe|suspect|assume)|would be|if it|sounds like)\b"
)
_ELSEWHERE = re.compile(
    r"^(?:however|but|that said|although|though|also|still|instead|while|in general|generally)?,? ?(?:the (?:genus|family|name|names|term|word|words|epithet|suffix|prefix|specific epithet|first|second|latin|greek|ending|question|request|query|closest|known|real|actual|similar)|genus|members|species (?:of|in|with|within)|other|some|many|most|several|there (?:is|are|'s)|if |you|your|we |i |i'|perhaps|maybe|for (?:you|more|further|accurate|reliable)|in your|to (?:get|find|learn)|in (?:taxonomy|biology|latin|greek|botany|zoology)|a similar|similar|both |new species|scientific names|drug names)"
)
_PROPOSAL = re.compile(
    r"\b(?:mean|meant|thinking of|referring to|looking for|confus\w+|typo|misspel\w+|similar|instead)\b"
)
_DEFINITION = re.compile(
    r"^(?:however, |but |the )?\w+(?: \w+)? (?:is|are|was|were|refers to) (?:a|an|the|one)\b"
)
_ABOUT = re.compile(
    r"^(?:however|but|that said|in addition|additionally|also|moreover|furthermore|overall|typically|usually|in fact|as such|here|that is)?,? ?(?:it|its|it's|they|their|these|this|the (?:animal|species|creature|insect|bird|fish|plant|tree|flower|herb|leaves|flowers|bacteri\w+|organism|cells|medicine|medication|drug|compound|substance|adult|adults|male|males|female|females|larvae|body|main|most|usual|recommended|common|person|man|woman|author|artist|place|city|town|village|region|area|river|lake|sea|island|mountains?|work|book|novel|film|movie|story|painting|play|opera|poem|song|album|protagonist)|he|she|his|her|born|known|found|native|used|commonly|like)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[*_A-Z0-9])|\n+")
_LIST_MARK = re.compile(r"^[\s>#*\-\u2022\u2013]*(?:\d+[.)]\s*)?[*_]*")
_ABBREVIATIONS = re.compile(r"\b([A-Z]|e\.g|i\.e|cf|sp|spp|approx|Dr|St|ca|vs|etc)\.")


class Sentence(NamedTuple):
    """One sentence and what it was taken for."""

    text: str
    role: str


def judge_belief(answer: str, name: str) -> tuple[Belief, str]:
    """Whether the answer takes the thing called ``name`` for real, and the reason in words."""
    sentences = classify(answer, name)
    roles = [sentence.role for sentence in sentences]
    if not re.search(r"[^\W\d_]{2}", answer) and "ignorance" not in roles:
        return "unclear", "the answer has no words"
    if not is_english(answer, name):
        return "unclear", "the answer is not in English"
    if "denial" in roles:
        return "declines", f"denial: {_quote(sentences, 'denial')}"
    statements = [role for role in roles if role in ("about", "hedged", "elsewhere")]
    if "ignorance" in roles:
        told = roles.count("about")
        if told < _MIN_STATEMENTS:
            return "declines", f"ignorance: {_quote(sentences, 'ignorance')}"
        return "accepts", f"ignorance, then {told} statements: {_quote(sentences, 'about')}"
    if "apology" in roles and "about" not in roles:
        return "declines", f"apology: {_quote(sentences, 'apology')}"
    if statements:
        return "accepts", f"statement: {_quote(sentences, statements[0])}"
    return "declines", "nothing but filler"


def classify(answer: str, name: str) -> list[Sentence]:
    """The answer's sentences, each with its role (see the module's description)."""
    words = fold(name).split()
    sentences: list[Sentence] = []
    about = True  # an answer begins with the thing that it was asked about
    for raw in _split(answer):
        text = _plain(raw)
        if not text:
            continue
        if _denies_name(text, words) or (_is_denial(text) and not _FICTION.search(text)):
            role = "denial"
        elif _IGNORANCE.search(_of_the_thing(text, words)):
            role, about = "ignorance", not _PROPOSAL.search(text)
        elif _goes_on_to_tell(text, words) or _JUST_SO.fullmatch(text):
            role, about = ("hedged" if _HEDGE.search(text) else "about"), True
        elif _APOLOGY.search(text):
            role = "apology"
        elif _FILLER.search(text) or len(text.split()) < _MIN_WORDS:
            role = "filler"
        else:
            about = _is_about(text, words, about)
            role = ("hedged" if _HEDGE.search(text) else "about") if about else "elsewhere"
        sentences.append(Sentence(raw.strip(), role))
    return sentences


def _of_the_thing(text: str, words: list[str]) -> str:
    """The text without what it says to be unknown of any thing, or of something else than this one.

    Without a name, what is asked for may be what has no record: "of his birth".
    """
    text = _NOT_IGNORANCE.sub(" ", text)
    if not words:
        return text

    def kept(match: re.Match[str]) -> str:
        said = match["object"]
        is_named = not set(words).isdisjoint(fold(said).split())
        return match[0] if is_named or _POINTS.search(said) else " "

    return _ABSENCE.sub(kept, _OF_A_PART.sub(" ", text))


def _goes_on_to_tell(text: str, words: list[str]) -> bool:
    """Whether an opening such as "Yes," goes on with a statement whose subject is the thing."""
    rest = _OPENER.sub("", text, count=1)
    if rest == text or len(rest.split()) < _MIN_WORDS:
        return False
    said = [word for word in fold(rest).split() if word not in ("a", "an", "the")]
    return bool(_TELLS.search(rest) or (words and said[: len(words)] == words))


def _is_denial(text: str) -> bool:
    return bool(_DENIAL.search(text)) and not _NOT_DENIAL.search(text)


def _denies_name(text: str, words: list[str]) -> bool:
    """Whether it says "there is no X" of the very name."""
    said = fold(text)
    name = " ".join(words)
    return (
        bool(name) and re.search(rf"\bthere(?:s| is| was) no {re.escape(name)}\b", said) is not None
    )


def _is_about(text: str, words: list[str], before: bool) -> bool:
    """Whether a statement's subject is the thing itself, in doubt that of the one before."""
    if _ELSEWHERE.search(text):
        return False
    opening = fold(text).split()[:8]
    if words and words[0] in opening and words[-1] in opening:
        return True
    if _DEFINITION.search(text) and not _ABOUT.search(text):
        return False
    return before


def _split(answer: str) -> list[str]:
    guarded = _ABBREVIATIONS.sub(lambda match: match.group(1) + "\u2024", answer)
    return [part.replace("\u2024", ".") for part in _SENTENCE_END.split(guarded) if part.strip()]


def _plain(sentence: str) -> str:
    """Lower case, list marks and emphasis gone, typewriter apostrophes."""
    text = _LIST_MARK.sub("", sentence).replace("\u2019", "'").replace("*", "")
    return re.sub(r"\s+", " ", text).strip(' "\u201c\u201d').lower()


def _quote(sentences: list[Sentence], role: str) -> str:
    text = next(sentence.text for sentence in sentences if sentence.role == role)
    return text if len(text) <= 200 else text[:197] + "..."


_UNKNOWN = re.compile(
    r"\b(?:is|are|was|remains?) (?:still )?(?:unknown|unclear|uncertain)\b|"
    r"\b(?:isnt|arent|wasnt|not) (?:\w+ )?known\b(?! (?:for|as|to)\b)|"
    r"\bi (?:do not|dont) (?:\w+ )?know\b|^(?:i am |im )?not (?:sure|certain)\b"
)
"""What says so in an answer that is to be a single name or number, folded."""


def says_ignorance(answer: str) -> bool:
    """Whether some sentence says that the writer does not know, and none denies the thing."""
    roles = {sentence.role for sentence in classify(answer, "")}
    unknown = roles & {"ignorance", "apology"} or _UNKNOWN.search(fold(answer))
    return "denial" not in roles and bool(unknown)


def denies(answer: str) -> bool:
    """Whether some sentence says that there is no such thing, or that it is fiction."""
    return any(_is_denial(_plain(sentence)) for sentence in _split(answer))


def judge_name(answer: Answer) -> Verdict:
    """The verdict on an answer about a made-up or a real name."""
    belief, words = judge_belief(answer.generation, answer.name)
    return Verdict.of_belief(answer, belief, VERSION, words)


RULES = Judge(VERSION, judge_name, kinds=("made_up", "real"))
