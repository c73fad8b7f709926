"""A real model in process: SmolLM2-135M-Instruct on the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest

from gex_pipeline.config import CompressConfig
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer

MODEL = Path(__file__).parents[2] / ".cache" / "smollm2"
TEXTS = [
    ["A man in a red coat opens a door.", "A man in a red coat feeds two dogs.", "Two dogs run into a garden."],
    ["A girl kicks a ball.", "A girl falls on the grass."],
]
LONG_TEXTS = [LongText(f"s{i}", " ".join(sentences), sentences) for i, sentences in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def summarizer() -> Summarizer:
    if not MODEL.exists():
        pytest.skip("no .cache/smollm2; make it with: python -m ops.models.smollm2 .cache/smollm2")
    return Summarizer(CompressConfig(backend="transformers", model=str(MODEL), max_new_tokens=24, retries=0))


def test_summaries_are_made_by_the_model_and_the_same_every_time(summarizer):
    first, again = (summarizer.summarize(LONG_TEXTS) for _ in range(2))
    assert [line["summary"] for line in first] == [line["summary"] for line in again]
    for line, text in zip(first, LONG_TEXTS):
        assert (line["status"], line["model"], line["backend"]) == ("ok", "smollm2", "transformers")
        assert line["prompt_tokens"] > line["output_tokens"] > 3
        assert line["summary"].endswith(".") and line["summary"] != text.text


def assert_plain(backend, texts: list[LongText]) -> None:
    """Each answer equals that of the plain model on the whole prompt, alone."""
    import torch

    results = backend.generate(texts, [0] * len(texts), 0.0)
    for text, result in zip(texts, results):
        chat = torch.tensor([backend.chat.tokens(text)])
        answer = backend.model.generate(input_ids=chat, attention_mask=torch.ones_like(chat), do_sample=False)
        alone = backend.tokenizer.decode(answer[0, chat.shape[1] :], skip_special_tokens=True)
        assert result.text == alone and result.prompt_tokens == chat.shape[1]


def test_the_shared_prefix_and_the_padding_change_nothing(summarizer):
    assert_plain(summarizer.backend, LONG_TEXTS)


def test_a_text_whose_start_makes_one_token_with_the_prompts_end_is_read_whole(summarizer, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text('[user]\nShorten the captions: "{text}"\n')
    backend = Summarizer(replace(summarizer.config, prompt=str(file))).backend
    stop = LongText("stop", '"Stop" sign is shown.', ['"Stop" sign is shown.'])
    assert not backend.has_prefix(backend.chat.tokens(stop)) and backend.has_prefix(backend.chat.tokens(LONG_TEXTS[0]))
    assert_plain(backend, [LONG_TEXTS[0], stop])


def test_a_seed_decides_its_own_text_whatever_the_company(summarizer):
    backend = summarizer.backend
    (alone,) = backend.generate(LONG_TEXTS[:1], [5], 1.0)
    beside, together = backend.generate([LONG_TEXTS[0], LONG_TEXTS[0]], [6, 5], 1.0)
    assert together.text == alone.text != beside.text


def test_the_context_of_the_model_is_known(summarizer):
    assert summarizer.backend.fits(LONG_TEXTS[0])
    many = TEXTS[0] * 600
    assert not summarizer.backend.fits(LongText("long", " ".join(many), many))
