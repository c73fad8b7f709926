"""What counts as a sentence when captions are split and joined, and as a word when they are measured."""

import re

_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_STOPS = (".", "!", "?", "。", "！", "？")
# Thai and Lao, Burmese, Khmer, Japanese and Chinese: no spaces between words
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LETTER = re.compile(rf"(?=\w)[{UNSPACED}]")


def split(text: str) -> list[str]:
    """The sentences of a text, stripped, none empty."""
    return [sentence.strip() for sentence in _END.split(text) if sentence.strip()]


def ended(sentence: str) -> str:
    """Captions often have no full stop; two of them need one between."""
    return sentence if sentence.endswith(_STOPS) else sentence + "."


def words(text: str) -> list[str]:
    """What spaces part; where scripts without them are, their letters instead."""
    return [word for part in text.split() for word in _LETTER.findall(part) or [part]]


def leading(text: str, count: int) -> str:
    """The first `count` words, ended; a text that has no more stays as it is."""
    if len(words(text)) <= count:
        return text
    kept = []
    for part in text.split():
        kept.append(part[:count] if len(words(part)) > count else part)
        count -= len(words(part))
        if count <= 0:
            break
    return ended(" ".join(kept))
