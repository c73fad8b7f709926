"""Small models in process: Hugging Face transformers, on the CPU or on the actor's GPU."""

import time

import torch
import transformers

from gex_pipeline.config import CompressConfig
from gex_pipeline.llm import weights
from gex_pipeline.llm.base import Result
from gex_pipeline.llm.chat import Chat
from gex_pipeline.llm.prompt import Prompt
from gex_pipeline.summaries import LongText


class TransformersBackend:
    """Batches of left-padded chats over one shared prefix.

    All chats begin with the same instructions and example, so the keys and values of that prefix are computed once:
    with short captions it is more than half of the prompt. Where a text's first characters make one token with the
    prompt's last, its chat begins otherwise and is read whole, with those of its batch.
    """

    name = "transformers"
    guarded = True

    def __init__(self, config: CompressConfig, prompt: Prompt):
        folder = weights.find(config.model)
        transformers.utils.logging.disable_progress_bar()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = config.dtype if config.dtype != "auto" else {"cuda": "bfloat16", "cpu": "float32"}[self.device]
        self.chat = Chat(folder, config, prompt, padding_side="left")
        self.tokenizer = self.chat.tokenizer
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.device).eval()
        # Greedy unless asked: a folder's own sampling defaults must not leak in.
        stops = self.model.generation_config.eos_token_id
        self.tokenizer.pad_token_id = self.tokenizer.pad_token_id or self.tokenizer.eos_token_id
        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=stops, pad_token_id=self.tokenizer.pad_token_id, max_new_tokens=config.max_new_tokens
        )
        self.stops = set(stops if isinstance(stops, list) else [stops])
        self.config, self.context = config, self.model.config.max_position_embeddings
        if config.max_model_len:
            self.context = min(self.context, config.max_model_len)
        self.chat.check_context(self.context)
        self.model_name = folder.name
        self.identity = {"backend": self.name, "model": weights.revision(folder), "dtype": dtype}
        self.identity |= {"context": self.context, "chat": self.chat.digest}
        self.prefix = common_prefix(*(self.chat.tokens(LongText("", probe, [probe])) for probe in ("x", "1")))
        self.prefix_cache = self.run_prefix()

    def run_prefix(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the prefix, a pair [1, heads, tokens, size] a layer."""
        with torch.inference_mode():
            ids = torch.tensor([self.prefix], device=self.device)
            cache = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def fits(self, text: LongText) -> bool:
        return self.chat.fits(text, self.context)

    def generate(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        chats = [self.chat.tokens(text) for text in texts]
        # Those without the prefix together, and like lengths: little padding.
        order = sorted(range(len(texts)), key=lambda i: (self.has_prefix(chats[i]), len(chats[i])))
        results = [None] * len(texts)
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            made = self.generate_batch([chats[i] for i in batch], [seeds[i] for i in batch], temperature)
            for i, result in zip(batch, made, strict=True):
                results[i] = result
        return results

    @torch.inference_mode()
    def generate_batch(self, chats: list[list[int]], seeds: list[int], temperature: float) -> list[Result]:
        started = time.perf_counter()
        prefix = self.prefix if all(map(self.has_prefix, chats)) else []
        ids, mask = self.pad(chats, prefix)
        sampler = [GumbelNoise(seeds, temperature)] if temperature > 0 else []
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.expanded_prefix(len(chats)) if prefix else None,
            logits_processor=transformers.LogitsProcessorList(sampler),
            do_sample=False,
        )[:, ids.shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(chats)
        return [self.result(chat, answer, seconds) for chat, answer in zip(chats, output, strict=True)]

    def has_prefix(self, chat: list[int]) -> bool:
        return chat[: len(self.prefix)] == self.prefix

    def pad(self, chats: list[list[int]], prefix: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both int64 [B, L]: the prefix, then padding, then what differs."""
        rests = [chat[len(prefix) :] for chat in chats]
        width = max(map(len, rests))
        pads = [width - len(rest) for rest in rests]
        padding = self.tokenizer.pad_token_id
        ids = [prefix + [padding] * pad + rest for pad, rest in zip(pads, rests)]
        mask = [[1] * len(prefix) + [0] * pad + [1] * len(rest) for pad, rest in zip(pads, rests)]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def expanded_prefix(self, size: int) -> transformers.DynamicCache:
        return transformers.DynamicCache(
            [(k.expand(size, -1, -1, -1), v.expand(size, -1, -1, -1)) for k, v in self.prefix_cache]
        )

    def result(self, chat: list[int], answer: list[int], seconds: float) -> Result:
        end = next((i for i, token in enumerate(answer) if token in self.stops), None)
        text = self.tokenizer.decode(answer[:end], skip_special_tokens=True)
        count = len(answer) if end is None else end + 1
        return Result(text, "length" if end is None else "stop", len(chat), count, self.model_name, seconds)


class GumbelNoise(transformers.LogitsProcessor):
    """Sampling at a temperature as the argmax of logits plus Gumbel noise, from one generator a text.

    transformers samples a whole batch from one generator; here a text's draw depends on its own seed alone.
    """

    def __init__(self, seeds: list[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores / self.temperature - noise.log().to(scores.device)


def common_prefix(first: list[int], second: list[int]) -> list[int]:
    length = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    return first[:length]
