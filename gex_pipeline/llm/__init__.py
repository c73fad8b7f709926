"""Summary backends behind one interface (`base.Backend`): `create` builds the one that a config names."""

from gex_pipeline import summaries
from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import prompt, weights
from gex_pipeline.llm.base import Backend, Result
from gex_pipeline.llm.prompt import Prompt

__all__ = ["Backend", "Prompt", "Result", "check", "create"]


def check(config: CompressConfig) -> None:
    """Everything that can be refused before the job starts, without loading a model: raises UserError."""
    prompt.load(config.prompt, config.max_words)
    for root in config.reuse:
        summaries.check_reusable(root)
    if config.backend == "transformers":
        weights.find(config.model)


def create(config: CompressConfig, prompt: Prompt) -> Backend:
    """The backend of a config, model loaded. Each module is imported only when asked for: torch is heavy."""
    if config.backend == "transformers":
        from gex_pipeline.llm.transformers_backend import TransformersBackend

        return TransformersBackend(config, prompt)
    from gex_pipeline.llm.extractive import ExtractiveBackend

    return ExtractiveBackend(config.max_words)
