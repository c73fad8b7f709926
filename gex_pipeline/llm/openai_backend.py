"""A server that speaks OpenAI's API: a hosted one, or `vllm serve`, llama.cpp, Ollama and their like."""

import asyncio
import os
import random
import time
from dataclasses import replace

import openai

from gex_pipeline.config import CompressConfig
from gex_pipeline.errors import Transient
from gex_pipeline.llm.background import Background
from gex_pipeline.llm.base import Result
from gex_pipeline.llm.prompt import Prompt
from gex_pipeline.summaries import LongText
from shards.errors import UserError

TRIES = 5
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds before the second try; each further wait is twice as long
SILENCES = 3  # rows in a row that may be lost to silence; each has waited TRIES times compress.timeout_seconds
REFUSALS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
TEXT_REFUSALS = (openai.BadRequestError, openai.UnprocessableEntityError)
HARMLESS = LongText("", "A dog runs.", ["A dog runs."])
BYTES_A_TOKEN, TOKENS_A_TURN = 3, 8  # a cautious guess: tokens are counted by the server alone


class OpenAIBackend:
    """All texts of all rows in flight share one bound on requests.

    What may pass (429, 5xx, a dropped connection, silence, an answer that is none) is tried again, ever later; then the
    row stays pending, and further rows wait for nothing while not even the list of models comes back, or after SILENCES.
    """

    name = "openai"
    guarded = True

    def __init__(self, config: CompressConfig, prompt: Prompt):
        self.config, self.prompt = config, prompt
        self.identity = {"backend": self.name, "model": config.model, "engine": config.engine}
        self.key = os.environ.get(config.key_env, "")
        self.client = openai.AsyncOpenAI(base_url=config.url, api_key=self.key or "none", max_retries=0)
        self.background, self.places = Background(), asyncio.Semaphore(config.requests)
        self.context: int | None = None
        self.answering, self.silences = False, 0
        try:
            self.greet()
        except Transient:
            pass  # it may be up by the time that the first row comes; else that row says so

    def greet(self) -> None:
        """Learn from the server which models it has and how long a text may be; UserError for what cannot work."""
        if self.answering:
            return
        if self.silences >= SILENCES:
            raise Transient(f"given up: {self.config.url} was silent for {SILENCES} rows one after the other")
        try:
            models = self.background.run(self.models())
        except REFUSALS[:2] as error:
            raise UserError(f"compress.key_env: the server refuses {self.config.key_env}: {self.reason(error)}") from None
        except openai.NotFoundError:
            models = []  # a server without that list
        except (openai.OpenAIError, TimeoutError, ValueError, AttributeError) as error:
            raise Transient(f"no answer from {self.config.url}: {self.reason(error)}") from None
        known = {model.id: getattr(model, "max_model_len", None) for model in models}
        if known and self.config.model not in known:
            raise UserError(f"compress.model: the server has no {self.config.model}; it has {', '.join(sorted(known)[:9])}")
        self.context = self.config.max_model_len or known.get(self.config.model)
        if not isinstance(self.context, int):  # longer texts could be cut silently
            raise UserError(
                f"compress.max_model_len is not set, and {self.config.url} does not say how many tokens "
                f"{self.config.model} reads; give the model's context"
            )
        if not self.fits_context(LongText("", "x", ["x"])):
            raise UserError(
                f"compress.max_model_len: a context of {self.context:,} tokens is too small for the prompt and "
                f"compress.max_new_tokens ({self.config.max_new_tokens}); take a longer context or a shorter prompt"
            )
        self.answering = True

    async def models(self) -> list:
        async with asyncio.timeout(min(self.config.timeout_seconds, 30)):
            return (await self.client.models.list()).data

    def fits(self, text: LongText) -> bool:
        self.greet()
        return self.fits_context(text)

    def fits_context(self, text: LongText) -> bool:
        turns = [turn["content"] for turn in self.prompt.messages(text)]
        tokens = sum(len(turn.encode()) // BYTES_A_TOKEN + TOKENS_A_TURN for turn in turns)
        return tokens + self.config.max_new_tokens <= self.context

    def generate(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        self.greet()
        return self.background.run(self.answers(texts, seeds, temperature))

    async def answers(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        started = time.monotonic()
        asked = [asyncio.ensure_future(self.ask(text, seed, temperature)) for text, seed in zip(texts, seeds, strict=True)]
        try:
            results = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        share = (time.monotonic() - started) / max(len(asked), 1)
        return [replace(result, seconds=share) for result in results]

    async def ask(self, text: LongText, seed: int, temperature: float) -> Result:
        """The server's answer to one text; an empty one, which no guard lets pass, where it refuses this text alone."""
        try:
            return await self.request(text, seed, temperature)
        except TEXT_REFUSALS:
            pass
        try:
            await self.request(HARMLESS, seed, temperature)
        except TEXT_REFUSALS as error:  # not the text but what we ask with: all summaries would be fallbacks
            raise Transient(f"{self.config.url} refuses every text: {self.reason(error)}") from None
        return Result("", "refused", 0, 0, self.config.model, 0.0)

    async def request(self, text: LongText, seed: int, temperature: float) -> Result:
        """The server's answer to one text, tried until TRIES is used up; TEXT_REFUSALS are left to the caller."""
        body = {"model": self.config.model, "messages": self.prompt.messages(text), "seed": seed}
        body |= {"temperature": temperature, "max_tokens": self.config.max_new_tokens, "extra_body": self.config.engine}
        async with self.places:
            for attempt in range(TRIES):
                try:
                    async with asyncio.timeout(self.config.timeout_seconds):
                        completion = await self.client.chat.completions.create(**body)
                    result = self.result(completion)
                    self.silences = 0
                    return result
                except REFUSALS as error:
                    raise self.lost(error) from None
                except TEXT_REFUSALS:
                    raise
                except (openai.OpenAIError, TimeoutError) as error:
                    why = error
                except (ValueError, AttributeError, TypeError, LookupError):  # no json, or not of that shape
                    why = ValueError("an answer without text")
                if attempt + 1 < TRIES:
                    await asyncio.sleep(delay(attempt, why))
        raise self.lost(why)

    def lost(self, why: Exception) -> Transient:
        """For a row that the server fails; the next one asks first whether it is back.

        A server may list its models and still answer nothing: every row would wait as long.
        """
        if self.answering and isinstance(why, (TimeoutError, openai.APITimeoutError)):
            self.silences += 1
        self.answering = False
        return Transient(f"no summary from {self.config.url}: {self.reason(why)}")

    def result(self, completion: openai.types.chat.ChatCompletion) -> Result:
        """What an answer says; one of the errors of looking for it where it has another shape."""
        choice, usage = completion.choices[0], completion.usage
        said, finish = choice.message.content or "", choice.finish_reason or "stop"
        if not isinstance(said, str) or not isinstance(finish, str):
            raise TypeError("no text")
        counts = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
        return Result(said, finish, *counts, self.config.model, 0.0)

    def reason(self, error: Exception) -> str:
        """One line that never holds the key, whatever a server repeats."""
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer in {self.config.timeout_seconds:g} s (compress.timeout_seconds)"
        line = " ".join(str(error).split()) or type(error).__name__
        return (line.replace(self.key, "***") if self.key else line)[:300]


def delay(attempt: int, why: Exception) -> float:
    """Seconds to wait: as long as the server asks for (Retry-After), else twice as long each time, a little apart."""
    response = getattr(why, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    seconds = float(asked) if asked.replace(".", "", 1).isdigit() else FIRST_DELAY * 2**attempt * random.uniform(0.8, 1.2)
    return min(seconds, LONGEST_DELAY)
