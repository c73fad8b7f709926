"""Summary backends behind one interface (`base.Backend`): `create` builds the one that a config names."""

from urllib.parse import urlsplit

from gex_pipeline import summaries
from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import chat, environment, prompt, weights
from gex_pipeline.llm.base import Backend, Result
from gex_pipeline.llm.prompt import Prompt
from shards.errors import UserError

__all__ = ["Backend", "Prompt", "Result", "check", "create"]


def check(config: CompressConfig) -> None:
    """Everything that can be refused before the job starts, without loading a model: raises UserError."""
    prompt.load(config.prompt, config.max_words)
    for root in config.reuse:
        summaries.check_reusable(root)
    if config.chat_template:
        chat.read_template(config.chat_template)
    if config.backend in ("transformers", "vllm"):
        weights.find(config.model)
    if config.backend == "openai":
        check_server(config)


def check_server(config: CompressConfig) -> None:
    """UserError for what can be said of `openai` settings without asking the server."""
    address = urlsplit(config.url or "")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"compress.url is {config.url}; give the server's address, such as http://localhost:8000/v1")
    if address.username or address.password:
        raise UserError("compress.url holds a name or password; put the key into the variable that compress.key_env names")
    if not config.model:
        raise UserError("compress.model is not set; name a model as the server does")
    if config.chat_template:
        raise UserError("compress.chat_template: the server applies its own; give the file to the server")


def create(config: CompressConfig, prompt: Prompt) -> Backend:
    """The backend of a config, model loaded. Each module is imported only when asked for: torch is heavy."""
    if config.backend == "transformers":
        from gex_pipeline.llm.transformers_backend import TransformersBackend

        return TransformersBackend(config, prompt)
    if config.backend == "vllm":
        environment.check_vllm()
        from gex_pipeline.llm.vllm_backend import VllmBackend

        return VllmBackend(config, prompt)
    if config.backend == "openai":
        from gex_pipeline.llm.openai_backend import OpenAIBackend

        return OpenAIBackend(config, prompt)
    from gex_pipeline.llm.extractive import ExtractiveBackend

    return ExtractiveBackend(config.max_words)
