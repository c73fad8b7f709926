"""The prompt: a text file of chat turns, `[system]`, `[user]` or `[assistant]` on a line of its own before each.

The last turn holds exactly one of `{captions}` (the sentences in one line, separated by commas: small models copy
whole sentences less when they see none) and `{text}` (as it is). `{max_words}` stands for that setting anywhere.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from gex_pipeline.summaries import LongText
from shards.errors import UserError

DEFAULT = Path(__file__).with_name("prompt.txt")
TURN = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)
PLACES = re.compile(r"\{(captions|text)\}")
LOWERED = frozenset("A An The This That These Two Three Four Several Some One Another He She They It".split())


@dataclass(frozen=True)
class Prompt:
    turns: tuple[tuple[str, str], ...]  # (role, content) with max_words filled in
    digest: str  # of the file

    def messages(self, text: LongText) -> list[dict[str, str]]:
        """Chat messages for one text; braces in the text itself are left alone."""
        values = {"captions": listed(text.sentences), "text": text.text}
        (*before, (role, last)) = self.turns
        last = PLACES.sub(lambda place: values[place[1]], last)
        return [{"role": r, "content": c} for r, c in [*before, (role, last)]]

    @property
    def instructions(self) -> str:
        """Everything but the text: what an answer must not repeat."""
        return "\n".join(PLACES.sub("", content) for _, content in self.turns)


def load(path: str | None, max_words: int) -> Prompt:
    """Read a prompt file (default: the one beside this module); UserError where it is not one."""
    file = Path(path) if path else DEFAULT
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"compress.prompt: cannot read {file}: {error}") from None
    before, *parts = TURN.split(content)
    turns = tuple((role, body.strip().replace("{max_words}", str(max_words))) for role, body in zip(parts[::2], parts[1::2]))
    if before.strip() or not turns or turns[-1][0] != "user":
        raise UserError(f"compress.prompt: {file} must be turns under [system], [user], [assistant], the last a [user]")
    if len(PLACES.findall(content)) != 1 or not PLACES.search(turns[-1][1]):
        raise UserError(f"compress.prompt: {file} must hold {{captions}} or {{text}} once, in its last turn")
    return Prompt(turns, hashlib.sha256(content.encode()).hexdigest()[:16])


def listed(sentences: list[str]) -> str:
    """Sentences as one list: no full stops, no capital where it only marked the start."""
    return ", ".join(uncapitalized(sentence.strip().rstrip(".").rstrip()) for sentence in sentences)


def uncapitalized(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:] if sentence.split(" ", 1)[0] in LOWERED else sentence
