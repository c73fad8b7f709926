"""Sentences that speak to the model instead of showing the video: left out of what any backend reads.

A pattern list, so it finds what it knows (English, the common phrasings) and no more: an instruction that reads like
a caption passes. Captions that tell people to do things ("add the onions") must pass too, so a bare imperative is
never enough: it has to speak of instructions, prompts, answers or summaries.
"""

import re

from gex_pipeline.summaries import LongText

_ANSWER = r"(answer|summary|response|reply|output|caption|description)s?"
_INSTRUCTION = re.compile(
    rf"""
    \b(ignore|disregard|forget|override|discard)\b.{{0,40}}
        \b(above|previous|prior|preceding|earlier|instructions?|captions?|prompts?|everything|rules|task)\b
    | \b(system|developer)\s+(prompt|message|override|notice)\b | ^\W*(system|assistant|user|developer)\s*:
    | <\|\w+\|> | \[/?INST\] | ^\W*\#\#+\s*(instruction|system|response) | </?(system|captions|instructions?)>
    | \b(as|you\s+are|you're|act\s+as)\s+(now\s+)?(an?|the)\s+(ai|language\s+model|assistant|chat\s?bot|summarizer)\b
    | \bnew\s+(instructions?|task|rules?)\b\s*[:.]
    | \b(respond|reply|answer)\s+(only|just|with|in)\b
    | ^\W*(please\s+|now\s+|instead,?\s+)*(say|print|output|write|repeat|return|append|include|mention|begin|start|end|
        finish|translate|describe|summari[sz]e|add)\b.*\b(your|the)\s+{_ANSWER}\b
    | ^\W*(please\s+|now\s+|instead,?\s+)*(say|print|output|write|repeat|return)\b.*\b(only|the\s+words?|exactly|instead)\b
    | \b(your|the)\s+(final\s+)?{_ANSWER}\s+(must|should|has\s+to|needs\s+to|is\s+to)\b
    | \binstead\s+of\s+(a\s+|the\s+|this\s+)?(summari[sz]ing|{_ANSWER})\b
    | ^\W*(please\s+|now\s+|only\s+|do\s+not\s+|don't\s+|stop\s+)*summari[sz](e|ing)\b
    | \b(your|this)\s+summary\b | \bsummary\s+of\s+(this|the|these|all)\s+(video|clip|captions?|text)s?\b
    | \b(these|all(\s+the)?\s+other|real|true|correct|actual|end\s+of(\s+the)?)\s+captions?\b
    | \bvideo\s+is\s+(really|actually|in\s+fact)\s+about\b | ^\W*next\s+(video|clip)\s*:
    | \b(dear|hey|hello|attention,?|(message|note|word)\s+(to|for))\s+(the\s+|an?\s+|any\s+|all\s+)?
        (ai|llm|language\s+model|chat\s?bot|summari[sz]er)s?\b
    | \b(chatgpt|large\s+language\s+model)\b
    """,
    re.I | re.X,
)


def speaks_to_model(sentence: str) -> bool:
    return _INSTRUCTION.search(sentence) is not None


def screened(text: LongText) -> LongText:
    """The text without the sentences that speak to a model; the text itself where there are none, or no others."""
    kept = [sentence for sentence in text.sentences if not speaks_to_model(sentence)]
    if not kept or len(kept) == len(text.sentences):
        return text
    return LongText(text.sample_id, " ".join(kept), kept)
