"""Any size of model: one vLLM engine an actor, shared by all rows that the actor works on at once.

The engine core is a process of vLLM's own. When it dies, or finishes nothing for `compress.timeout_seconds`, a new one
takes its place and the rows concerned are asked again; a row whose engine is lost twice stays pending.
"""

import asyncio
import atexit
import itertools
import time

import psutil
from vllm import AsyncEngineArgs, RequestOutput, SamplingParams
from vllm.config import VllmConfig
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from gex_pipeline.config import CompressConfig
from gex_pipeline.errors import Transient
from gex_pipeline.llm import watchdog, weights
from gex_pipeline.llm.background import Background
from gex_pipeline.llm.base import Result
from gex_pipeline.llm.chat import Chat
from gex_pipeline.llm.prompt import Prompt
from gex_pipeline.summaries import LongText
from shards.errors import UserError

LIVES = 2  # engines that may be lost under a row
START_SECONDS = 3600.0  # for an engine to load and compile; large weights on slow storage take long


class VllmBackend:
    name = "vllm"
    guarded = True

    def __init__(self, config: CompressConfig, prompt: Prompt):
        folder = weights.find(config.model)
        self.config, self.model_name = config, folder.name
        self.chat = Chat(folder, config, prompt)
        self.settings = engine_settings(config)
        model = self.settings.model_config
        self.context = model.max_model_len
        self.chat.check_context(self.context)
        self.identity = {"backend": self.name, "model": weights.revision(folder), "dtype": str(model.dtype)}
        self.identity |= {"quantization": model.quantization, "context": self.context, "chat": self.chat.digest}
        self.background, self.lock = Background(), asyncio.Lock()
        self.engine: AsyncLLM | None = None
        self.numbers = itertools.count()
        self.progressed = 0.0  # when a text was last handed in or finished
        try:
            self.background.run(self.living())
        except Exception as error:
            raise UserError(f"compress: vLLM's engine does not start: {reason(error)}") from None
        atexit.register(self.close)  # an engine that ends with its parent is reported as if it had been lost

    def close(self) -> None:
        """End the engine's processes; nothing is left for the exit to do, nor to hold."""
        atexit.unregister(self.close)
        if self.engine is not None:
            self.background.run(self.discard(self.engine))

    def fits(self, text: LongText) -> bool:
        return self.chat.fits(text, self.context)

    def generate(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        """All texts are handed in at once: the engine batches them with those of other rows."""
        return self.background.run(self.answers([self.chat.tokens(text) for text in texts], seeds, temperature))

    async def answers(self, chats: list[list[int]], seeds: list[int], temperature: float) -> list[Result]:
        for _ in range(LIVES):
            try:
                engine = await self.living()
            except Exception as error:
                raise Transient(f"vLLM's engine was lost and does not start again: {reason(error)}") from None
            started = time.monotonic()
            work = asyncio.gather(*(self.answer(engine, *one, temperature) for one in zip(chats, seeds, strict=True)))
            try:
                outputs = await self.watched(work)
            except (EngineDeadError, TimeoutError) as error:
                why = reason(error)
                await self.discard(engine)
                continue
            share = (time.monotonic() - started) / max(len(outputs), 1)
            return [self.result(output, share) for output in outputs]
        raise Transient(f"vLLM's engine was lost {LIVES} times under this row: {why}")

    async def answer(self, engine: AsyncLLM, chat: list[int], seed: int, temperature: float) -> RequestOutput:
        self.progressed = time.monotonic()
        sampling = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=self.config.max_new_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine.generate(tokens_input(chat), sampling, str(next(self.numbers))):
            answer, self.progressed = output, time.monotonic()
        return answer

    def result(self, output: RequestOutput, seconds: float) -> Result:
        made, count = output.outputs[0], len(output.prompt_token_ids)
        return Result(made.text, made.finish_reason, count, len(made.token_ids), self.model_name, seconds)

    async def watched(self, work: asyncio.Future) -> list[RequestOutput]:
        """The result of `work`; TimeoutError once the engine has finished no text of any row for too long."""
        limit = self.config.timeout_seconds
        while not (await asyncio.wait([work], timeout=limit))[0]:
            if time.monotonic() - self.progressed >= limit:
                work.cancel()
                await asyncio.wait([work])
                work.exception()  # seen, so that asyncio does not report it
                raise TimeoutError(f"no text was finished in {limit:g} s (compress.timeout_seconds)")
        return work.result()

    async def living(self) -> AsyncLLM:
        """The engine, started where there is none; whoever comes meanwhile waits for the same one."""
        async with self.lock:
            if self.engine is None:
                before = psutil.Process().children()
                with watchdog.deadline(START_SECONDS):
                    self.engine = AsyncLLM.from_vllm_config(self.settings, disable_log_stats=True)
                self.watchdog = watchdog.guard(watchdog.started_since(before))
            return self.engine

    async def discard(self, engine: AsyncLLM) -> None:
        """Let go of a lost engine, once: the rows that it served all come here."""
        async with self.lock:
            if engine is self.engine:
                self.engine = None
                watchdog.release(self.watchdog)  # first: what stalls would keep shutdown() waiting
                engine.shutdown()


def engine_arguments(config: CompressConfig) -> dict:
    """vLLM's own arguments for a config."""
    return {
        "model": str(weights.find(config.model)),
        "dtype": config.dtype,
        "quantization": config.quantization,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel,
        # An actor's GPUs are on its own node, and Ray has given them to it already.
        "distributed_executor_backend": "mp" if config.tensor_parallel > 1 else None,
        "seed": config.seed,
    } | config.engine


def engine_settings(config: CompressConfig) -> VllmConfig:
    """What vLLM makes of them; UserError for those that it refuses."""
    try:
        # LLM_CLASS: vLLM's defaults for many texts at hand, larger batches than for a server's users who wait.
        return AsyncEngineArgs(**engine_arguments(config)).create_engine_config(UsageContext.LLM_CLASS)
    except Exception as error:
        raise UserError(f"compress: vLLM refuses the model or the settings: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """The beginning of an error, as one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__
