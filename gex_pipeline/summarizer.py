"""Texts -> checked summaries: one backend with its prompt, guards, retries and fallback.

A generation that fails a guard is made again with another seed. A text that the model's context does not hold is
summarised in pieces, then the pieces' summaries together: nothing is cut off silently. So is, in pieces of a few
sentences, a text whose every generation failed: small models lose the thread of many sentences, not of four. What
fails even so becomes the text's most central sentences instead, marked "fallback" with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gex_pipeline import llm, sentences, summaries
from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import guards, prompt
from gex_pipeline.llm.extractive import ExtractiveBackend
from gex_pipeline.llm.screen import screened
from gex_pipeline.summaries import LongText
from shards.format import digest

RETRY_TEMPERATURE = 0.7  # of every generation after the first, unless the config asks for more
PIECE_SENTENCES = 4  # of a piece where the whole text failed
NO_EFFORT = {"attempts": 0, "rejected": [], "prompt_tokens": 0, "output_tokens": 0, "seconds": 0.0}


@dataclass
class Draft:
    """What generation has come to for one text, its pieces included."""

    source: LongText
    text: LongText  # what the model reads: the source, or the summaries of its pieces
    summary: str | None = None  # what a model wrote and the guards passed
    result: llm.Result | None = None  # the last generation
    rejected: list[str] = field(default_factory=list)
    too_long: bool = False  # for the context, its pieces' summaries too: not asked again
    attempts: int = 0
    pieces: list["Draft"] = field(default_factory=list)  # whose summaries the text is made of
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """Why there is no summary."""
        return "context" if self.too_long else (self.rejected or ["no_text"])[-1]

    def add(self, result: llm.Result) -> None:
        self.result = result
        self.attempts += 1
        self.prompt_tokens += result.prompt_tokens
        self.output_tokens += result.output_tokens
        self.seconds += result.seconds

    def take(self, pieces: list["Draft"]) -> None:
        """Count the work on the text's pieces as its own."""
        self.pieces = pieces
        self.result = pieces[-1].result
        for piece in pieces:
            self.rejected += piece.rejected
            self.attempts += piece.attempts
            self.prompt_tokens += piece.prompt_tokens
            self.output_tokens += piece.output_tokens
            self.seconds += piece.seconds


class Summarizer:
    def __init__(self, config: CompressConfig):
        self.config = config
        self.prompt = prompt.load(config.prompt, config.max_words)
        self.limits = guards.Limits(config.min_words, config.max_words)
        self.reusable = summaries.load_reusable(config.reuse)
        self.fallback = ExtractiveBackend(config.max_words)
        self.backend = llm.create(config, self.prompt)
        self.settings = self.backend.identity | {"max_words": config.max_words, "screen": config.screen}
        if self.backend.guarded:
            names = ("min_words", "retries", "temperature", "max_new_tokens", "seed")
            self.settings |= {name: getattr(config, name) for name in names} | {"prompt": self.prompt.digest}

    def key(self, text: LongText) -> str:
        return summaries.text_key(self.settings, text)

    def summarize(self, texts: list[LongText], known: dict[str, dict] | None = None) -> list[dict]:
        """A line of `summaries.SCHEMA` for each text, in order.

        Lines that are `known` or reusable are taken over, and equal texts are generated once.
        """
        keys = [self.key(text) for text in texts]
        known = self.reusable | (known or {})
        drafts = self.generate({key: text for key, text in zip(keys, texts) if key not in known})
        made = {key: self.line(key, draft) for key, draft in drafts.items()}
        lines = []
        for key, text in zip(keys, texts):
            line = made.pop(key, None)
            if line is None:
                line = known[key] | NO_EFFORT
            known[key] = line
            lines.append(line | {"sample_id": text.sample_id})
        return lines

    def generate(self, texts: dict[str, LongText]) -> dict[str, Draft]:
        """key -> draft; without a summary where the model wrote none that passes."""
        drafts = {key: Draft(text, self.readable(text)) for key, text in texts.items()}
        pending = {key: draft for key, draft in drafts.items() if draft.source.sentences}
        while long := {key: draft for key, draft in unwritten(pending).items() if not self.backend.fits(draft.text)}:
            self.condense(long, self.backend.fits)
        self.attempt(pending)
        while failed := {key: draft for key, draft in unwritten(pending).items() if not is_piece(draft.text)}:
            self.condense(failed, is_piece)
            self.join(failed)
            self.attempt(failed)
        return drafts

    def readable(self, text: LongText) -> LongText:
        return screened(text) if self.config.screen else text

    def attempt(self, drafts: dict[str, Draft]) -> None:
        """Generate and check; what fails again, up to `compress.retries` times with other seeds."""
        for attempt in range(1 + self.config.retries if self.backend.guarded else 1):
            pending = unwritten(drafts)
            if not pending:
                return
            temperature = max(self.config.temperature, RETRY_TEMPERATURE) if attempt else self.config.temperature
            seeds = [self.seed(name, attempt) for name in pending]
            results = self.backend.generate([draft.text for draft in pending.values()], seeds, temperature)
            for draft, result in zip(pending.values(), results, strict=True):
                draft.add(result)
                self.judge(draft, result)

    def condense(self, drafts: dict[str, Draft], small: Callable[[LongText], bool]) -> None:
        """Put the summaries of its pieces, each of which is `small`, in the place of each text; give up where a piece
        cannot be, or where their summaries fit no better."""
        pieces = {}
        for key, draft in drafts.items():
            parts = split(draft.text, small)
            draft.too_long = not all(map(small, parts))
            if not draft.too_long:
                pieces[key] = [Draft(part, part) for part in parts]
        self.attempt({f"{key}/{i}": piece for key, parts in pieces.items() for i, piece in enumerate(parts)})
        for key, parts in pieces.items():
            draft = drafts[key]
            draft.take(parts)
            shorter = [piece.summary or self.central(piece.text) for piece in parts]
            text = LongText(draft.source.sample_id, " ".join(shorter), shorter)
            shrinks = len(text.text) < len(draft.text.text) and not self.backend.fits(draft.text)
            draft.too_long = not self.backend.fits(text) and not shrinks
            draft.text = text

    def join(self, drafts: dict[str, Draft]) -> None:
        """Where the summaries of a text's pieces are together a summary of it, let them be it."""
        for draft in drafts.values():
            if all(piece.summary for piece in draft.pieces) and not self.fault(draft.text.text, "stop", draft):
                draft.summary = draft.text.text

    def judge(self, draft: Draft, result: llm.Result) -> None:
        """Take a generation as the draft's summary, or note why not."""
        summary = guards.clean(result.text, result.finish_reason) if self.backend.guarded else result.text
        reason = self.fault(summary, result.finish_reason, draft)
        if reason == "too_long":
            summary = guards.leading(summary, self.limits.max_words)
            reason = self.fault(summary, "stop", draft)
        if reason:
            draft.rejected.append(reason)
        else:
            draft.summary = summary

    def fault(self, summary: str, finish_reason: str, draft: Draft) -> str | None:
        if not self.backend.guarded:
            return None
        return guards.check(summary, finish_reason, draft.source.text, self.prompt.instructions, self.limits)

    def seed(self, name: str, attempt: int) -> int:
        """31 bits that depend on nothing but the text's key and the attempt: not on order or company."""
        return int(digest([name, attempt])[:8], 16) >> 1

    def central(self, text: LongText) -> str:
        """What stands in for a summary: the most central sentences, a single one over `max_words` cut there."""
        return sentences.leading(self.fallback.extract(text).text, self.limits.max_words)

    def line(self, key: str, draft: Draft) -> dict:
        ok, result = draft.summary is not None, draft.result
        summary = draft.summary if ok else self.central(self.readable(draft.source))
        return {
            "key": key,
            "text": draft.source.text,
            "summary": summary,
            "sentences": sentences.split(summary),
            "status": "ok" if ok else "fallback",
            "reason": None if ok else draft.reason,
            "rejected": draft.rejected,
            "attempts": draft.attempts,
            "pieces": len(draft.pieces),
            "screened": len(draft.source.sentences) - len(self.readable(draft.source).sentences),
            "backend": self.backend.name if ok else self.fallback.name,
            "model": result.model if ok else self.fallback.identity["model"],
            "prompt": self.prompt.digest if self.backend.guarded else None,
            "finish_reason": result.finish_reason if result else None,
            "prompt_tokens": draft.prompt_tokens,
            "output_tokens": draft.output_tokens,
            "seconds": draft.seconds,
        }


def unwritten(drafts: dict[str, Draft]) -> dict[str, Draft]:
    return {name: draft for name, draft in drafts.items() if draft.summary is None and not draft.too_long}


def is_piece(text: LongText) -> bool:
    return len(text.sentences) <= PIECE_SENTENCES


def split(text: LongText, fits: Callable[[LongText], bool]) -> list[LongText]:
    """Halves of halves, each of which fits, cut between sentences, in a single one between words, in a single word
    between characters; a single character that does not fit stays."""
    units, glue = text.sentences, " "
    if len(units) < 2:
        units = text.text.split()
    if len(units) < 2:
        units, glue = text.text, ""
    if fits(text) or len(units) < 2:
        return [text]
    middle = len(units) // 2
    halves = [units[:middle], units[middle:]]
    if units is not text.sentences:
        halves = [[glue.join(half)] for half in halves]
    return [p for half in halves for p in split(LongText(text.sample_id, " ".join(half), half), fits)]
