"""What counts as a sentence when captions are split and joined."""

import re

_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_STOPS = (".", "!", "?", "。", "！", "？")


def split(text: str) -> list[str]:
    """The sentences of a text, stripped, none empty."""
    return [sentence.strip() for sentence in _END.split(text) if sentence.strip()]


def ended(sentence: str) -> str:
    """Captions often have no full stop; two of them need one between."""
    return sentence if sentence.endswith(_STOPS) else sentence + "."
