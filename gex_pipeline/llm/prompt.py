"""The prompt: a text file of chat turns, `[system]`, `[user]` or `[assistant]` on a line of its own before each.

`{text}` stands for the captions, exactly once and in the last turn; `{max_words}` for that setting.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError

DEFAULT = Path(__file__).with_name("prompt.txt")
TURN = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    turns: tuple[tuple[str, str], ...]  # (role, content) with max_words filled in
    digest: str  # of the file

    def messages(self, text: str) -> list[dict[str, str]]:
        """Chat messages for one text. Braces in the text are left alone."""
        return [{"role": role, "content": content.replace("{text}", text)} for role, content in self.turns]

    @property
    def instructions(self) -> str:
        """Everything but the text: what an answer must not repeat."""
        return "\n".join(content.replace("{text}", "") for _, content in self.turns)


def load(path: str | None, max_words: int) -> Prompt:
    """Read a prompt file (default: the one beside this module); UserError where it is not one."""
    file = Path(path) if path else DEFAULT
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"compress.prompt: cannot read {file}: {error}") from None
    before, *parts = TURN.split(content)
    turns = tuple(
        (role, body.strip().replace("{max_words}", str(max_words)))
        for role, body in zip(parts[::2], parts[1::2], strict=True)
    )
    if before.strip() or not turns or turns[-1][0] != "user":
        raise UserError(f"compress.prompt: {file} must be turns under [system], [user], [assistant], the last a [user]")
    if content.count("{text}") != 1 or "{text}" not in turns[-1][1]:
        raise UserError(f"compress.prompt: {file} must hold {{text}} exactly once, in its last turn")
    return Prompt(turns, hashlib.sha256(content.encode()).hexdigest()[:16])
