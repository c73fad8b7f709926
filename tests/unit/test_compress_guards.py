"""What is no summary never passes, and what is one does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gex_pipeline.llm import guards, prompt
from gex_pipeline.llm.prompt import listed
from gex_pipeline.sentences import words
from gex_pipeline.summaries import LongText
from shards.errors import UserError

LIMITS = guards.Limits(min_words=3, max_words=12)
TEXT = "A man cuts an apple. A woman eats soup. A dog sleeps under the table. The man washes a plate."
INSTRUCTIONS = "Shorten the captions of a video to one sentence: a white car turns left on a snowy street"


@pytest.mark.parametrize(
    "raw, reason",
    [
        ("", "empty"),
        (' \n " ', "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("As an AI language model I see no video.", "refusal"),
        ("I’m sorry, but I can’t assist with that request.", "refusal"),
        ("I can’t help with that.", "refusal"),
        ("I apologize, but I cannot summarize this.", "refusal"),
        ("Unfortunately, I cannot summarize these captions.", "refusal"),
        ("As a language model, I cannot see videos.", "refusal"),
        ("I'm afraid I can't help with that.", "refusal"),
        ("I'm afraid that I am unable to do that.", "refusal"),
        ("I must decline to summarize this.", "refusal"),
        ("Мужчина режет яблоко на кухне.", "script"),
        ("男人在厨房里切苹果。", "script"),
        ("A white car turns left on a snowy street.", "prompt_echo"),
        ("Shorten the captions of a video.", "prompt_echo"),
        (TEXT, "text_echo"),
        (TEXT.lower().replace(".", ";"), "text_echo"),
        ("The dog dog dog sleeps.", "repetition"),
        ("a man eats soup and " * 4, "repetition"),
        ("A man and a woman who share a kitchen cook, eat, wash up and rest.", "too_long"),
        ("A kitchen.", "too_short"),
        ("A man cuts an apple while a", "cut"),
        ("<think>\nThe captions show a man in a kitchen. So", "empty"),
        ("Here is a summary of the captions:", "empty"),
    ],
)
def test_guard_names_what_is_wrong(raw, reason):
    finish = "length" if reason == "cut" else "stop"
    assert guards.check(guards.clean(raw, finish), finish, TEXT, INSTRUCTIONS, LIMITS) == reason


@pytest.mark.parametrize(
    "raw, summary",
    [
        ("A man and a woman share a kitchen with a dog.", "A man and a woman share a kitchen with a dog."),
        ('"A man cuts an apple beside a dog."', "A man cuts an apple beside a dog."),
        ("Summary: A man cooks\nwhile a dog sleeps.", "A man cooks while a dog sleeps."),
        ("Here is a one-sentence summary of the captions: A man cooks.", "A man cooks."),
        ("Sure! Here is the summary:\n\nA man cooks while a dog sleeps.", "A man cooks while a dog sleeps."),
        ("Sure, here's a one-sentence summary of the captions:\n\nA man cooks.", "A man cooks."),
        ("Here is a short sentence that summarizes the captions:\r\n\r\nA man cooks.", "A man cooks."),
        ("Here’s a shortened version: A man cooks.", "A man cooks."),
        ("**Short sentence:**\n\nA man cooks.", "A man cooks."),
        ("**Summary**: A man cooks.", "A man cooks."),
        ("<think>\nA man.\n\nA dog.\n</think>\n\nA man cooks.", "A man cooks."),
        ("So it is a man.\n</think>\n\nA man cooks.", "A man cooks."),
        ("The summary of the video is: A man cooks.", "A man cooks."),
        ("Summary of the video: A man cooks.", "A man cooks."),
        ("Answer (one sentence): A man cooks.", "A man cooks."),
        ("A one-sentence summary: A man cooks.", "A man cooks."),
        ("A boy with a ball shouts:\nthe dog brings it back.", "A boy with a ball shouts: the dog brings it back."),
        ("A caption on the screen reads: A man cooks.", "A caption on the screen reads: A man cooks."),
        ("The answer is on a board: a man cooks.", "The answer is on a board: a man cooks."),
        ("I’m afraid of the dog beside the soup.", "I’m afraid of the dog beside the soup."),
        ("A man cooks.\n\nI hope that this helps!", "A man cooks."),
        ("A man cooks. A man cooks. A dog sleeps. A man cooks.", "A man cooks. A dog sleeps."),
    ],
)
def test_what_surrounds_a_summary_is_removed(raw, summary):
    assert guards.clean(raw, "stop") == summary
    assert guards.check(summary, "stop", TEXT, INSTRUCTIONS, LIMITS) is None


def test_a_cut_generation_keeps_its_whole_sentences():
    assert guards.clean("A man cooks. A dog sleeps. The wo", "length") == "A man cooks. A dog sleeps."


def test_of_too_many_sentences_the_first_ones_within_the_limit_stay():
    raw = "A man cooks soup with a dog. A woman eats the soup. The man washes all plates."
    assert guards.leading(raw, 12) == "A man cooks soup with a dog. A woman eats the soup."
    assert guards.leading(raw, 3) == "A man cooks soup with a dog."  # too long for the guards, but not cut


def test_a_summary_may_repeat_what_the_text_repeats():
    text = "A man makes a sign with his hands. " * 4 + "A woman waves."
    summary = "A man makes a sign with his hands, makes a sign with his hands and makes a sign with his hands."
    assert guards.check(summary, "stop", text, INSTRUCTIONS, guards.Limits(3, 40)) is None


@pytest.mark.parametrize(
    "text, summary",
    [
        ("男人切苹果。女人喝汤。", "男人在厨房里切苹果，女人在喝汤。"),
        ("男がりんごを切る。女がスープを飲む。犬が寝る。", "男が料理をし、女がスープを飲み、犬が寝ている。"),
        ("ผู้ชายหั่นแอปเปิล ผู้หญิงกินซุป", "ผู้ชายและผู้หญิงกินอาหารในครัว"),
    ],
)
def test_a_script_without_spaces_is_measured_in_letters(text, summary):
    """And welcome where the text uses it."""
    assert guards.check(summary, "stop", text, "", guards.Limits(3, 40)) is None
    assert guards.check(summary, "stop", text, "", guards.Limits(3, 9)) == "too_long"
    assert guards.check(summary[:2], "stop", text, "", guards.Limits(3, 40)) == "too_short"
    assert guards.check(text, "stop", text, "", guards.Limits(3, 99)) == "text_echo"
    assert guards.check(summary[:6] * 3, "stop", text, "", guards.Limits(3, 99)) == "repetition"


@given(st.text(), st.sampled_from(["stop", "length"]), st.text())
def test_any_text_gets_a_verdict(raw, finish, text):
    summary = guards.clean(raw, finish)
    reason = guards.check(summary, finish, text, INSTRUCTIONS, LIMITS)
    assert reason is None or reason in guards.REASONS
    assert reason or LIMITS.min_words <= len(words(summary)) <= LIMITS.max_words


def test_the_text_stays_in_its_place_in_the_prompt():
    text = LongText("s", "Ignore this. {max_words} {captions}", ["Ignore this.", "{max_words} {captions}"])
    messages = prompt.load(None, 40).messages(text)
    assert [m["role"] for m in messages] == ["system"] + ["user", "assistant"] * 2 + ["user"]
    assert messages[-1]["content"].endswith("Ignore this, {max_words} {captions}")


def test_captions_become_one_list_without_stops():
    assert listed(["A man runs.", "John sits", "The sea . "]) == "a man runs, John sits, the sea"


@pytest.mark.parametrize(
    "content, says",
    [
        ("Summarize: {text}", "must be turns"),
        ("[user]\nSummarize.\n", "{captions} or {text} once"),
        ("[user]\n{text} {captions}\n", "{captions} or {text} once"),
        ("[user]\n{text}\n[assistant]\nyes\n", "the last a [user]"),
        ("[user]\n{text}\n[user]\nbe brief\n", "in its last turn"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused(tmp_path, content, says):
    file = tmp_path / "prompt.txt"
    file.write_text(content)
    with pytest.raises(UserError) as refusal:
        prompt.load(str(file), 40)
    assert says in str(refusal.value) and str(file) in str(refusal.value)


def test_a_prompt_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="compress.prompt: cannot read"):
        prompt.load(str(tmp_path / "none.txt"), 40)
