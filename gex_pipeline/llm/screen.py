"""Sentences that speak to the model instead of showing the video: left out of what any backend reads.

A pattern list, so it finds what it knows (English, the common phrasings) and no more: an instruction that reads like
a caption passes. Captions that tell people to do things ("add the onions") must pass too, so a bare imperative is
never enough: it has to speak of instructions, prompts, answers or summaries. Nor are such words enough where they tell
what people do ("they answer in unison").
"""

import re

from gex_pipeline.summaries import LongText

# An order begins a sentence or a clause, or says to whom: "the players ignore", "they reply with" tell of people.
_ORDER = (
    r"(?:^|[.:;,!?]|\b(?:please|now|must|should|you)\b)\W{0,9}"
    r"(?:(?:please|kindly|now|just|simply|only|always|never|and|then|instead|must|should|will|have\s+to|need\s+to|are\s+to"
    r"|be\s+sure\s+to|to)\b\W{0,9}){0,4}"
)
_ANSWER = r"(answer|summary|response|reply|output|caption|description)s?"
_INSTRUCTION = re.compile(
    rf"""
    {_ORDER}(ignore|disregard|forget|override|discard)\b.{{0,40}}
        \b(above|previous|prior|preceding|earlier|instructions?|captions?|prompts?|your\s+(rules|task))\b
    | {_ORDER}(ignore|disregard|forget)\s+everything\b
    | \b(system|developer)\s+(prompt|message|override|notice)\b | ^\W*(system|assistant|user|developer)\s*:
    | <\|\w+\|> | \[/?INST\] | ^\W*\#\#+\s*(instruction|system|response) | </?(system|captions|instructions?)>
    | \b(as|you\s+are|you're|act\s+as)\s+(now\s+)?(an?|the)\s+(ai|language\s+model|assistant|chat\s?bot|summarizer)\b
    | \bnew\s+(instructions?|task|rules?)\b\s*[:.]
    | {_ORDER}(respond|reply|answer)\s+(only|just|with|in)\b
    | ^\W*(please\s+|now\s+|instead,?\s+)*(say|print|output|write|repeat|return|append|include|mention|begin|start|end|
        finish|translate|describe|summari[sz]e|add)\b.*\b(your\s+{_ANSWER}|the\s+(summary|response|reply|output))\b
    | {_ORDER}(begin|start|end|finish)\s+the\s+{_ANSWER}\b
    | ^\W*(please\s+|now\s+|instead,?\s+)*(say|print|output|write|repeat|return)\b.*\b((only|exactly|instead)\b
        | the\s+word\s+(?!(on|in|out|to|with|after|and)\b) | the\s+words?\s*[:"'“‘])
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
