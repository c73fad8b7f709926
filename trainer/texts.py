"""Texts as lists of sentences -> padded token arrays. Nothing is cut: an over-long sentence becomes several."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import torch

Tokenizer = Callable[[list[str]], torch.Tensor]  # n texts -> int64 [n, L], as open_clip's tokenizers do


@dataclass
class TextBatch:
    """One text view of a batch."""

    tokens: torch.Tensor  # int64 [B, S, L]
    mask: torch.Tensor  # bool [B, S], True where there is a sentence
    text_id: torch.Tensor  # int64 [B], equal for equal texts, which are no negatives of each other


class TextEncoder:
    """Tokenises texts of several sentences.

    S is the most sentences a text of this batch (of this rank) has: only pooled embeddings meet other ranks'.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenize = tokenizer
        self._pad = int(tokenizer(["a"])[0, -1])

    def __call__(self, texts: list[list[str]]) -> TextBatch:
        """texts: the sentences of each sample, at least one each."""
        flat = [sentence for sentences in texts for sentence in sentences]
        encoded = iter(self._chunks(flat))
        samples = [torch.cat([next(encoded) for _ in sentences]) for sentences in texts]
        longest, length = max(len(tokens) for tokens in samples), samples[0].shape[1]
        tokens = torch.full((len(samples), longest, length), self._pad, dtype=torch.int64)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for i, rows in enumerate(samples):
            tokens[i, : len(rows)] = rows
            mask[i, : len(rows)] = True
        return TextBatch(tokens, mask, torch.tensor([text_id(sentences) for sentences in texts]))

    def _chunks(self, sentences: list[str]) -> list[torch.Tensor]:
        """Tokens of each sentence, int64 [its chunks, L]."""
        rows = self._tokenize(sentences)
        return [self._split(s) if self._full(row) else row[None] for s, row in zip(sentences, rows)]

    def _full(self, row: torch.Tensor) -> bool:
        """Whether a row may have been cut. Only the last two places tell: some tokenizers pad with their end token,
        which then stands last in any row, others with a token that words have too."""
        return bool((row[-2:] != self._pad).any())

    def _split(self, sentence: str) -> torch.Tensor:
        """Tokens of a sentence in the fewest balanced runs of words that fit; of characters where words do not."""
        units, space = (sentence.split(), " ") if len(sentence.split()) > 1 else (list(sentence), "")
        for count in range(2, len(units) + 1):
            bounds = [i * len(units) // count for i in range(count + 1)]
            rows = self._tokenize([space.join(units[a:b]) for a, b in zip(bounds, bounds[1:])])
            if not any(self._full(row) for row in rows):
                return rows
        if space:
            return torch.cat(self._chunks(units))
        return self._tokenize([sentence])  # a single character that fills the context: nothing left to split


def text_id(sentences: list[str]) -> int:
    """63-bit hash of a text."""
    digest = blake2b(" ".join(sentences).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
