"""The summary that needs no model: the most central sentences of the text, by TextRank (sumy)."""

import time

from sumy.models.dom import ObjectDocumentModel, Paragraph, Sentence
from sumy.summarizers.text_rank import TextRankSummarizer

from gex_pipeline.llm.base import Result
from gex_pipeline.sentences import ended, words
from gex_pipeline.summaries import LongText


class WordTokenizer:
    """sumy's own tokenizer needs a download, and captions come as sentences already."""

    def to_words(self, sentence: str) -> list[str]:
        return [word.strip(".,;:!?\"'()") for word in words(sentence)]


def summarize(sentences: list[str], max_words: int) -> list[str]:
    """The most central sentences in their order: as many as fit into `max_words` and into half of the text,
    at least one (none of none), whole even where it alone is longer.

    TextRank: Mihalcea and Tarau, "TextRank: Bringing Order into Text", EMNLP 2004.
    """
    unique = list(dict.fromkeys(sentences))
    if not unique:
        return []
    limit = min(max_words, sum(len(words(s)) for s in unique) // 2)
    tokenizer = WordTokenizer()
    document = ObjectDocumentModel([Paragraph([Sentence(s, tokenizer) for s in unique])])
    ratings = {str(s): float(rating) for s, rating in TextRankSummarizer().rate_sentences(document).items()}
    ranked = sorted(unique, key=lambda s: -round(ratings[s.strip()], 9))  # rounded: no order by floating-point noise
    chosen = {ranked[0]}
    length = len(words(ranked[0]))
    for sentence in ranked[1:]:
        length += len(words(sentence))
        if length > limit:
            break
        chosen.add(sentence)
    return [s for s in unique if s in chosen]


class ExtractiveBackend:
    name = "extractive"
    identity = {"backend": "extractive", "model": "textrank"}
    guarded = False

    def __init__(self, max_words: int):
        self.max_words = max_words

    def fits(self, text: LongText) -> bool:
        return True

    def generate(self, texts: list[LongText], seeds: list[int], temperature: float) -> list[Result]:
        """Same sentences, same summary: neither seeds nor temperature matter."""
        return [self.extract(text) for text in texts]

    def extract(self, text: LongText) -> Result:
        start = time.perf_counter()
        summary = " ".join(map(ended, summarize(text.sentences, self.max_words)))
        return Result(summary, "stop", 0, 0, "textrank", time.perf_counter() - start)
