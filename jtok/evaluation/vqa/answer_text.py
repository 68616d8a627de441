"""The text of answers: the normalisation of the VQA evaluation, and reading a choice out of what a model wrote.

The normalisation is that of VQA (arXiv:1505.00468, the evaluation code of the VQA team) with its quirks, because
scores are compared across papers: marks become spaces or vanish depending on the whole answer, only periods not before
a digit go, and contractions are mended by a list, so "im" stays and "somebody'd" loses its apostrophe.
"""

import re
import string
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_MOST_PERIODS = 32  # the evaluation code hands a flag to re.sub where the count belongs; longer answers keep the rest
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
# Each is mended where any one of its apostrophes is missing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _mended() -> dict[str, str]:
    mended = {
        right[:place] + right[place + 1 :]: right
        for right in _CONTRACTIONS
        for place, letter in enumerate(right)
        if letter == "'"
    }
    return mended | {"somebody'd": "somebodyd"}


_MENDED = _mended()


def strip_punctuation(text: str) -> str:
    """The answer without marks: taken out where one touches a space anywhere in it, or else turned into spaces.

    An answer with a comma between digits has all of its marks taken out. A period stays before a digit only.
    """
    grouped = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _MARKS:
        kept = kept.replace(mark, "" if grouped or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", kept, count=_MOST_PERIODS)


def plain_words(text: str) -> str:
    """The answer in lower case, number words up to ten as numerals, articles left out, contractions mended."""
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_answer(text: str) -> str:
    """A predicted answer as the VQA evaluation compares it."""
    return plain_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def textvqa_answer(text: str) -> str:
    """An answer, predicted or given, as the evaluation of TextVQA (arXiv:1904.08920) compares it.

    As `vqa_answer`, but first in lower case, without commas and question marks, and with "'s" a word of its own.
    """
    return vqa_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def science_choice(text: str, count: int) -> int | None:
    """Which of `count` choices an answer names, or None: "B", "B. ..." or "The answer is B" (ScienceQA's prompts)."""
    text = text.replace("\n", ". ")
    bare = text.strip()
    named = re.match(r"([A-E])\. ", text) or re.search(r"The answer is ([A-E])", text)
    letter = bare if bare in tuple("ABCDE") else named[1] if named else None
    place = None if letter is None else string.ascii_uppercase.index(letter)
    return place if place is not None and place < count else None


def mmbench_choice(text: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer names, or None, by the matching of MMBench (arXiv:2307.06281) without a language model.

    The one letter among its words (but "A" among more than three words may be an article), or else the one choice
    whose text it contains, unless it is more than twice as long as all choices together.
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = string.ascii_uppercase[: len(choices)]
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and not ("A" in words and len(words) > 3):
        return letters.index(named[0])
    contained = [place for place, choice in enumerate(choices) if choice.lower() in text.lower()]
    short = len(text) <= 2 * sum(map(len, choices))
    return contained[0] if short and len(contained) == 1 else None
