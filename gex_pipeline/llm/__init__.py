"""Summary backends behind one interface (`base.Backend`): `create` builds the one that a config names."""

import math
import re
from urllib.parse import urlsplit

from gex_pipeline import summaries
from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import chat, environment, prompt, weights
from gex_pipeline.llm.base import Backend, Result
from gex_pipeline.llm.prompt import Prompt
from shards.errors import UserError

__all__ = ["Backend", "Prompt", "Result", "check", "create"]


_POSITIVE = (
    "max_words", "max_new_tokens", "max_model_len", "batch_size", "threads", "actors", "tensor_parallel",
    "rows_in_flight", "requests", "timeout_seconds",
)  # fmt: skip


def check(config: CompressConfig) -> None:
    """Everything that can be refused before the job starts, without loading a model: raises UserError."""
    check_numbers(config)
    check_secrets(config)
    prompt.load(config.prompt, config.max_words)
    for root in config.reuse:
        summaries.check_reusable(root)
    if config.chat_template:
        chat.read_template(config.chat_template)
    if config.backend in ("transformers", "vllm"):
        weights.find(config.model)
    if config.backend == "openai":
        check_server(config)


def check_numbers(config: CompressConfig) -> None:
    for name in (*_POSITIVE, "min_words", "retries", "temperature"):
        value, positive = getattr(config, name), name in _POSITIVE
        if value is not None and not (0 < value < math.inf or value == 0 and not positive):
            raise UserError(f"compress.{name} is {value}; it must be {'positive' if positive else '0 or more'}")
    if config.min_words > config.max_words:
        raise UserError(f"compress.min_words ({config.min_words}) is more than compress.max_words ({config.max_words})")


def check_secrets(config: CompressConfig) -> None:
    """UserError where a key may be in what the dataset's expand.json repeats; the values are not printed."""
    if set("@?#") & set(config.url or ""):
        raise UserError(
            "compress.url holds a name, password or query; put the key into the variable that compress.key_env names"
        )
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", config.key_env):
        raise UserError(
            "compress.key_env is no name of an environment variable (capital letters, digits, _); "
            "put the key into a variable and name that, such as OPENAI_API_KEY"
        )


def check_server(config: CompressConfig) -> None:
    """UserError for what can be said of `openai` settings without asking the server."""
    try:
        address = urlsplit(config.url or "")
        known = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # half an IPv6 address, a port that is none
        known = False
    if not known:
        raise UserError(f"compress.url is {config.url}; give the server's address, such as http://localhost:8000/v1")
    if not config.model:
        raise UserError("compress.model is not set; name a model as the server does")
    if config.chat_template:
        raise UserError("compress.chat_template: the server applies its own; give the file to the server")


def create(config: CompressConfig, prompt: Prompt) -> Backend:
    """The backend of a config, model loaded; UserError where that fails."""
    try:
        return load(config, prompt)
    except UserError:
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"compress.model: {config.model} does not load: {reason[:400]}") from error


def load(config: CompressConfig, prompt: Prompt) -> Backend:
    """Each module is imported only when asked for: torch is heavy."""
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
