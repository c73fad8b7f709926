"""How near summaries are to references: ROUGE and BERTScore, by their libraries."""

import functools
from pathlib import Path

from shards.errors import UserError

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def rouge(summaries: list[str], references: list[str]) -> dict[str, list[float]]:
    """F1 of each pair, words stemmed. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    found = [scorer.score(reference, summary) for summary, reference in zip(summaries, references, strict=True)]
    return {name: [pair[measure].fmeasure for pair in found] for name, measure in ROUGE.items()}


def check_encoder(folder: str) -> None:
    """UserError for what is no encoder."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"--encoder: {folder} is no model folder (config.json, tokenizer, weights); leave it out for no BERTScore"
        )
    try:
        encoder(folder)
    except Exception as error:  # whatever a model's own code raises
        raise UserError(f"--encoder: {folder} does not load: {' '.join(str(error).split())[:400]}") from None


@functools.cache
def encoder(folder: str) -> tuple:
    """Its tokenizer and model."""
    from transformers import AutoModel, AutoTokenizer, logging

    logging.disable_progress_bar()
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def bert_score(summaries: list[str], references: list[str], folder: str) -> list[float]:
    """F1 of each pair by the last layer of an encoder, neither rescaled nor weighted by idf; the first 512 tokens count.

    Zhang et al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020. Values of two encoders do not compare.
    """
    from torchmetrics.functional.text.bert import bert_score as score

    tokenizer, model = encoder(folder)
    layers = model.config.num_hidden_layers
    # One pair at a time: given many, torchmetrics 1.9 sorts summaries and references by their own lengths, so that
    # they no longer belong together.
    pairs = zip(summaries, references, strict=True)
    settings = {"model": model, "user_tokenizer": tokenizer, "num_layers": layers, "truncation": True}
    return [score([s], [r], **settings)["f1"].item() for s, r in pairs]
