"""How much a text repeats itself."""

import re

LENGTH = 4  # words of an n-gram
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-cased runs of word characters."""
    return _WORD.findall(text.lower())


def repetition(words: list[str], length: int = LENGTH) -> float:
    """Fraction of the word n-grams that repeat an earlier one; 0 where there are none."""
    total = len(words) - length + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[start : start + total] for start in range(length)), strict=True))) / total
