"""What every summary backend is: long texts in, one result a text out, in the same order."""

from dataclasses import dataclass
from typing import Protocol

from gex_pipeline.summaries import LongText


@dataclass(frozen=True)
class Result:
    """One generation."""

    text: str  # as the model gave it; guards.clean makes a summary of it
    finish_reason: str  # "stop", or "length" where the token limit cut it
    prompt_tokens: int
    output_tokens: int
    model: str
    seconds: float  # its share of the batch's wall time


class Backend(Protocol):
    name: str
    identity: dict  # what decides the output beside prompt and parameters; enters every key
    guarded: bool  # whether its output may be no summary at all

    def fits(self, text: LongText) -> bool:
        """Whether prompt, text and output fit into the model's context."""

    def generate(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        """Summarise each text. With temperature 0 the seeds are ignored.

        Raises gex_pipeline.errors.Transient where trying again later may help (a dead server or engine).
        """
