"""Texts -> checked summaries: one backend with its prompt, guards, retries and fallback.

A generation that fails a guard is made again with another seed; what fails every time becomes the text's most
central sentences instead, marked "fallback" with the reason. A text that the model's context does not hold is
summarised in pieces, then the pieces' summaries together: nothing is cut off silently.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gex_pipeline import llm, sentences, summaries
from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import guards, prompt
from gex_pipeline.llm.extractive import ExtractiveBackend
from gex_pipeline.summaries import LongText
from shards.errors import UserError
from shards.format import digest

RETRY_TEMPERATURE = 0.7  # of every generation after the first, unless the config asks for more
NO_EFFORT = {"attempts": 0, "rejected": [], "prompt_tokens": 0, "output_tokens": 0, "seconds": 0.0}


@dataclass
class Draft:
    """What generation has come to for one text."""

    source: LongText
    text: LongText  # what the model reads: the source, or the summaries of its pieces
    summary: str | None = None
    result: llm.Result | None = None  # the last generation
    rejected: list[str] = field(default_factory=list)
    attempts: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0

    def add(self, result: llm.Result) -> None:
        self.result = result
        self.prompt_tokens += result.prompt_tokens
        self.output_tokens += result.output_tokens
        self.seconds += result.seconds


class Summarizer:
    def __init__(self, config: CompressConfig):
        self.config = config
        self.prompt = prompt.load(config.prompt, config.max_words)
        self.limits = guards.Limits(config.min_words, config.max_words)
        self.reusable = summaries.load_reusable(config.reuse)
        self.fallback = ExtractiveBackend(config.max_words)
        self.backend = llm.create(config, self.prompt)
        self.settings = self.backend.identity | {"max_words": config.max_words}
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
        """key -> draft with its summary: generate, check, try again, at last fall back."""
        drafts = {key: Draft(text, text) for key, text in texts.items()}
        self.condense(drafts)
        pending = {key: draft for key, draft in drafts.items() if draft.source.sentences}
        for attempt in range(1 + self.config.retries if self.backend.guarded else 1):
            temperature = max(self.config.temperature, RETRY_TEMPERATURE) if attempt else self.config.temperature
            results = self.ask({key: draft.text for key, draft in pending.items()}, attempt, temperature)
            for key, (result, summary, reason) in results.items():
                drafts[key].add(result)
                drafts[key].attempts += 1
                if reason:
                    drafts[key].rejected.append(reason)
                else:
                    drafts[key].summary = summary
            pending = {key: draft for key, draft in pending.items() if draft.summary is None}
        for draft in drafts.values():
            if draft.summary is None:
                draft.summary = self.fallback.extract(draft.source).text
        return drafts

    def condense(self, drafts: dict[str, Draft]) -> None:
        """Replace each text that the context does not hold by the summaries of its pieces, until it fits."""
        while long := {key: draft for key, draft in drafts.items() if not self.backend.fits(draft.text)}:
            pieces = {
                f"{key}/{i}": piece
                for key, draft in long.items()
                for i, piece in enumerate(split(draft.text, self.backend.fits))
            }
            shorter = {key: [] for key in long}
            for name, (result, summary, reason) in self.ask(pieces, 0, self.config.temperature).items():
                key = name.split("/")[0]
                drafts[key].add(result)
                shorter[key].append(self.fallback.extract(pieces[name]).text if reason else summary)
            for key, parts in shorter.items():
                text = LongText(drafts[key].source.sample_id, " ".join(parts), parts)
                if len(text.text) >= len(drafts[key].text.text):
                    raise context_too_small(text)
                drafts[key].text = text

    def ask(self, texts: dict[str, LongText], attempt: int, temperature: float) -> dict[str, tuple]:
        """name -> (result, summary, reason of its rejection or None) of one generation each."""
        if not texts:
            return {}
        seeds = [self.seed(name, attempt) for name in texts]
        results = self.backend.generate(list(texts.values()), seeds, temperature)
        return {name: self.judge(texts[name], result) for name, result in zip(texts, results, strict=True)}

    def judge(self, text: LongText, result: llm.Result) -> tuple[llm.Result, str, str | None]:
        if not self.backend.guarded:
            return result, result.text, None
        summary = guards.clean(result.text, result.finish_reason)
        instructions = self.prompt.instructions
        return result, summary, guards.check(summary, result.finish_reason, text.text, instructions, self.limits)

    def seed(self, name: str, attempt: int) -> int:
        """31 bits that depend on nothing but the text's key and the attempt: not on order or company."""
        return int(digest([name, attempt])[:8], 16) >> 1

    def line(self, key: str, draft: Draft) -> dict:
        ok = len(draft.rejected) < draft.attempts
        result = draft.result
        return {
            "key": key,
            "text": draft.source.text,
            "summary": draft.summary,
            "sentences": sentences.split(draft.summary),
            "status": "ok" if ok else "fallback",
            "reason": None if ok else (draft.rejected or ["no_text"])[-1],
            "rejected": draft.rejected,
            "attempts": draft.attempts,
            "backend": self.backend.name if ok else self.fallback.name,
            "model": result.model if ok else self.fallback.identity["model"],
            "prompt": self.prompt.digest if self.backend.guarded else None,
            "finish_reason": result.finish_reason if result else None,
            "prompt_tokens": draft.prompt_tokens,
            "output_tokens": draft.output_tokens,
            "seconds": draft.seconds,
        }


def split(text: LongText, fits: Callable[[LongText], bool]) -> list[LongText]:
    """Halves of halves, cut between sentences (a single sentence: between words), each of which fits."""
    if fits(text):
        return [text]
    units = text.sentences if len(text.sentences) > 1 else text.text.split()
    if len(units) < 2:
        raise context_too_small(text)
    middle = len(units) // 2
    halves = [units[:middle], units[middle:]]
    if units is not text.sentences:
        halves = [[" ".join(half)] for half in halves]
    return [p for half in halves for p in split(LongText(text.sample_id, " ".join(half), half), fits)]


def context_too_small(text: LongText) -> UserError:
    return UserError(
        f"compress: sample {text.sample_id}: the model's context holds too little beside prompt and answer to "
        f"summarise even pieces of its text; take a model with a longer context or a shorter prompt"
    )
