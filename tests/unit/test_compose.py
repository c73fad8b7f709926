"""How long samples are put together."""

from hypothesis import given
from hypothesis import strategies as st

from gex_pipeline import compose, sentences
from gex_pipeline.config import ExpandConfig


@given(total=st.integers(1, 300), clips=st.integers(1, 64))
def test_frames_are_dealt_evenly_and_all_of_them(total, clips):
    shares = compose.shares(total, clips)
    assert sum(shares) == total and len(shares) == clips and max(shares) - min(shares) <= 1


@given(available=st.integers(1, 100), wanted=st.integers(0, 150))
def test_frames_of_a_clip_are_in_order_distinct_and_centred(available, wanted):
    chosen = compose.evenly(available, wanted)
    assert len(chosen) == min(available, wanted) and chosen == sorted(set(chosen))
    assert all(0 <= i < available for i in chosen)
    # Seen from the other end the choice is the same, but for the frame that halves round to.
    mirrored = [available - 1 - i for i in reversed(chosen)]
    assert all(abs(a - b) <= 1 for a, b in zip(chosen, mirrored))


def clip(clip_id, caption, given_sentences=None, source="s", group=0, long=True) -> dict:
    return {
        "clip_id": clip_id,
        "caption": caption,
        "sentences": given_sentences,
        "source_id": source,
        "group": group,
        "long": long,
    }


def test_long_texts_are_the_captions_as_sentences():
    group = [
        clip("a", " A dog runs. It barks! "),
        clip("b", "the dog sleeps"),
        clip("c", "x", ["one", "two."]),
        clip("d", None),
    ]
    text = compose._long_text(group, ExpandConfig())
    assert text.text == "A dog runs. It barks! the dog sleeps. x."
    assert text.sentences == ["A dog runs.", "It barks!", "the dog sleeps.", "one.", "two."]


def test_only_groups_with_enough_surviving_clips_are_long():
    clips = [
        clip("a", "x"),
        clip("b", "x"),
        clip("c", "x", group=1),
        clip("d", "x", group=1),
        clip("e", "x", group=2, long=False),
    ]
    alive = {"a": (0, 1), "b": (1, 2), "c": (2, 3), "e": (3, 4)}
    groups = compose._surviving_groups(clips, alive, ExpandConfig())
    assert [[c["clip_id"] for c in group] for group in groups] == [["a", "b"]]


def test_a_group_whose_captioned_clips_are_lost_makes_no_long_sample():
    clips = [clip("a", None), clip("b", None), clip("c", "x"), clip("d", None, group=1), clip("e", "y", group=1)]
    alive = dict.fromkeys("abde", (0, 1))
    assert [[c["clip_id"] for c in group] for group in compose._surviving_groups(clips, alive, ExpandConfig())] == [["d", "e"]]


def test_a_sample_is_the_same_whatever_else_is_in_its_row():
    pair, config = [clip("a", "x"), clip("b", "y")], ExpandConfig()
    assert compose._long_text(pair, config).sample_id == compose._long_text([{**c, "group": 7} for c in pair], config).sample_id
    mixed = [clip("a", "x"), clip("b", "y", source="other")]
    assert compose._source_id(mixed) == compose.MIXED_SOURCES != compose._source_id(pair)


@given(st.lists(st.text(alphabet="ab ,", min_size=1).map(str.strip).filter(bool), max_size=6))
def test_sentences_split_as_they_were_joined(parts):
    parts = [sentences.ended(part) for part in parts]
    assert sentences.split(" ".join(parts)) == parts
