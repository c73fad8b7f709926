"""What makes a generation no summary. Pure functions of strings; `check` names the first guard that fails."""

import itertools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher

from gex_pipeline import sentences

REFUSAL = re.compile(
    r"^(sorry\b|i('m| am) sorry|i apologi[sz]e\b|as an? (ai|(large )?language model)\b"
    r"|((unfortunately|i('m| am) afraid)(,| that)? )?"
    r"i( cannot| can't| can not| won't| must decline| do(n't| not) have|('m| am) (unable|not able)))",
    re.I,
)
LABEL = re.compile(
    r"^\**((sure|certainly|of course|okay)\b[,.!]?\s*)?"
    r"((the |an? )?(one-sentence )?(summary|answer|caption)( (of|for)\b[^:\n]{0,40}| \([^)\n]*\))?"
    r"|here('s|’s| is)\b[^:\n]{0,60}\b(summary|sentence|caption|version)\b[^:\n]{0,60})\**:\**\s*",
    re.I,
)
ANNOUNCING = re.compile(
    r"^(sure|certainly|of course|okay|here)\b|\b(summary|sentence|caption|version|answer)s?\b|[^\x00-\u2fff]", re.I
)
WORD = re.compile(rf"(?=\w)[{sentences.UNSPACED}]|[^\W{sentences.UNSPACED}]+")
QUOTES = "\"'“”‘’«»`*"
ECHO_OF_PROMPT = 6  # so many words in a row from the prompt, not in the text
ECHO_OF_TEXT = 0.8  # so much of the text in one run
RUNAWAY = 3  # times the same four words in a row
FOREIGN = 0.1  # share of letters in scripts that neither the text nor the prompt uses

REASONS = ("empty", "refusal", "script", "prompt_echo", "text_echo", "repetition", "too_long", "too_short", "cut")


@dataclass(frozen=True)
class Limits:
    min_words: int
    max_words: int


def clean(raw: str, finish_reason: str) -> str:
    """The summary inside a generation: its first paragraph after thoughts and lines that only announce it, without label,
    quotes and doubled spaces, no sentence twice, and without the unfinished last sentence where the token limit cut it
    and a whole one comes before."""
    text = raw.rpartition("</think>")[2].partition("<think>")[0]  # a template may open the thought, the limit cut it
    lines = itertools.dropwhile(announces, unicodedata.normalize("NFC", text).splitlines())
    text = " ".join("\n".join(lines).split("\n\n")[0].split())
    text = LABEL.sub("", text)
    if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        text = text.strip(QUOTES).strip()
    if finish_reason == "length":
        whole = [sentence for sentence in sentences.split(text) if sentences.ended(sentence) == sentence]
        text = " ".join(whole) or text
    said = sentences.split(text)
    return text if len(set(said)) == len(said) else " ".join(dict.fromkeys(said))


def announces(line: str) -> bool:
    """Whether a line, such as "Here it is:" or an empty one, comes before the summary."""
    line = line.strip(" \t*")
    return not line or (line.endswith((":", "：")) and ANNOUNCING.search(line) is not None)


def leading(summary: str, max_words: int) -> str:
    """The first sentences that are within the limit, at least one: prompts ask for one, what comes after is surplus."""
    kept = sentences.split(summary)
    while len(kept) > 1 and sum(len(sentences.words(sentence)) for sentence in kept) > max_words:
        kept.pop()
    return " ".join(kept)


def check(summary: str, finish_reason: str, text: str, instructions: str, limits: Limits) -> str | None:
    """The first of REASONS that disqualifies a cleaned summary of `text`, or None."""
    words, source = normalized(summary), normalized(text)
    count = len(sentences.words(summary))
    if not words:
        return "empty"
    if REFUSAL.match(summary.replace("’", "'")) and summary.lower() not in text.lower():
        return "refusal"
    if foreign_share(summary, text + instructions) > FOREIGN:
        return "script"
    if runs(words, ECHO_OF_PROMPT) & runs(normalized(instructions), ECHO_OF_PROMPT) - runs(source, ECHO_OF_PROMPT):
        return "prompt_echo"
    if longest_common_run(words, source) > ECHO_OF_TEXT * len(source):
        return "text_echo"
    if runs_away(words, source):
        return "repetition"
    if count > limits.max_words:
        return "too_long"
    if count < limits.min_words:
        return "too_short"
    if finish_reason == "length" and sentences.ended(summary) != summary:
        return "cut"
    return None


def normalized(text: str) -> list[str]:
    """Lower-case words without punctuation; of scripts without spaces, letters."""
    return WORD.findall(text.lower())


def runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def longest_common_run(words: list[str], source: list[str]) -> int:
    return SequenceMatcher(None, words, source, autojunk=False).find_longest_match().size


def runs_away(words: list[str], source: list[str]) -> bool:
    """One word three times in a row, or the same four words RUNAWAY times and more often than in the text."""
    allowed = Counter(zip(source, source[1:], source[2:], source[3:]))
    fours = Counter(zip(words, words[1:], words[2:], words[3:]))
    stutter = any(a == b == c for a, b, c in zip(words, words[1:], words[2:]))
    return stutter or any(count >= RUNAWAY and count > allowed[four] for four, count in fours.items())


def foreign_share(summary: str, allowed: str) -> float:
    """Share of the summary's letters whose script the allowed text does not use."""
    known = {script(c) for c in allowed if c.isalpha()}
    letters = [c for c in summary if c.isalpha()]
    return sum(script(c) not in known for c in letters) / max(len(letters), 1)


def script(letter: str) -> str:
    """First word of a letter's Unicode name: LATIN, CJK, CYRILLIC, ..."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]
