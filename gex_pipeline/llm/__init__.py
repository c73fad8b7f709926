"""Summary backends behind one interface (`base.Backend`): `create` builds the one a config names."""

from gex_pipeline.config import CompressConfig
from gex_pipeline.llm.base import Backend, Result
from gex_pipeline.llm.prompt import Prompt

__all__ = ["Backend", "Prompt", "Result", "create", "check"]


def create(config: CompressConfig, prompt: Prompt) -> Backend:
    """The backend of a config, model loaded. Each module is imported only when asked for: torch is heavy."""
    if config.backend == "transformers":
        from gex_pipeline.llm.transformers import TransformersBackend

        return TransformersBackend(config, prompt)
    from gex_pipeline.llm.extractive import ExtractiveBackend

    return ExtractiveBackend(config.max_words)
