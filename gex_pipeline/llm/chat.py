"""A prompt as the tokens of one model: its tokenizer and its chat template, or the one that the config names."""

import re
from pathlib import Path

from gex_pipeline.config import CompressConfig
from gex_pipeline.llm.prompt import Prompt
from gex_pipeline.summaries import LongText
from shards.errors import UserError
from shards.format import digest


def read_template(path: str) -> str:
    """The jinja text of `compress.chat_template`; UserError where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"compress.chat_template: cannot read {path}: {error}") from None


class Chat:
    """Texts -> token ids, with the model's special tokens, of which the text itself can write none; refuses at once what
    would fail for every text."""

    def __init__(self, folder: Path, config: CompressConfig, prompt: Prompt, **options):
        import transformers

        self.prompt, self.answer = prompt, config.max_new_tokens
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if config.chat_template:
            self.tokenizer.chat_template = read_template(config.chat_template)
        if not self.tokenizer.chat_template:
            raise UserError(f"compress.model: {folder.name} ships no chat template; name one with compress.chat_template")
        self.control = control_tokens(self.tokenizer)
        try:
            self.least = len(self.tokens(LongText("", "x", ["x"])))
        except Exception as error:  # jinja's own, and whatever a template raises
            raise UserError(f"compress.chat_template: it refuses the prompt: {' '.join(str(error).split())}") from None

        self.digest = digest(self.tokenizer.chat_template)

    def tokens(self, text: LongText) -> list[int]:
        return self.tokenizer.apply_chat_template(
            self.prompt.messages(self.plain(text)), add_generation_prompt=True, return_dict=False
        )

    def plain(self, text: LongText) -> LongText:
        """The text without what the tokenizer would read as the end of a turn and the like."""
        sentences = [self.control.sub(" ", sentence) for sentence in text.sentences]
        return LongText(text.sample_id, self.control.sub(" ", text.text), [s for s in sentences if s.strip()])

    def fits(self, text: LongText, context: int) -> bool:
        """Whether prompt, text and answer fit into so many tokens."""
        return len(self.tokens(text)) + self.answer <= context

    def check_context(self, context: int) -> None:
        """UserError where it holds not even prompt and answer."""
        if self.least + self.answer > context:
            raise UserError(
                f"compress.max_model_len: a context of {context:,} tokens is too small: the prompt alone has {self.least:,} "
                f"and compress.max_new_tokens is {self.answer:,}; take a longer context or a shorter prompt"
            )


def control_tokens(tokenizer) -> re.Pattern:
    """Finds the strings that the tokenizer makes special tokens of; <think>, <｜User｜> are among its others."""
    added = tokenizer.added_tokens_decoder.values()
    found = {str(token) for token in added if token.special or re.fullmatch("<.+>", str(token))}
    found = (found | set(tokenizer.all_special_tokens)) - {""}
    return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or "(?!)")
