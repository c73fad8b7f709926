"""Sample bytes to frames, and sentences to tokens."""

import io
import json
import random
import struct
import tarfile
import zlib

import numpy as np
import open_clip
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.decode import Recipe, SampleError, choose_frames, decode_sample, fit, stored_frames
from trainer.texts import TextEncoder, text_id
from trainer.work import ByteStore, Failure, Row, Window, decode_row

CLIP = open_clip.tokenizer.SimpleTokenizer(context_length=16)
WORDS = st.text(st.sampled_from("aebcdéGEXß19,.!你好の"), min_size=1, max_size=40)  # CLIP's tokenizer repairs odder text
SENTENCES = st.lists(WORDS, min_size=1, max_size=40).map(" ".join).filter(str.strip)


def recipe(**changes):
    settings = {"granularity": "short", "views": ("caption",), "frames": 3, "size": 32, "random_frames": False}
    return Recipe(**{**settings, "random_crop": False, "seed": 0, **changes})


def sample(
    frames: list[np.ndarray], meta=None, names: list[str] | None = None, key="000000001", text: bytes | None = b"a red ball"
) -> bytes:
    """A tar slice as the writer makes them. meta: what its json holds, or the json itself."""
    meta = {"sample_id": "abc", "sentences": {"caption": ["a red ball"]}} if meta is None else meta
    members = [("json", meta if isinstance(meta, bytes) else json.dumps(meta).encode())]
    members += [("txt", text)] if text else []
    names = names or [f"{i:03d}.jpg" for i in range(len(frames))]
    members += [(n, simplejpeg.encode_jpeg(np.ascontiguousarray(f), quality=95)) for n, f in zip(names, frames)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def grey(value: int, height=32, width=40) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers())
def test_frames_come_one_from_each_segment_in_order(stored, wanted, seed):
    for rng in (None, random.Random(seed)):
        chosen = choose_frames(stored, wanted, rng)
        assert len(chosen) == min(stored, wanted)
        if stored > wanted:
            assert all(i * stored // wanted <= c < (i + 1) * stored // wanted for i, c in enumerate(chosen))
        else:
            assert chosen == list(range(stored))


def test_missing_frames_are_zero_and_counted():
    out = np.full((3, 32, 32, 3), 7, np.uint8)
    decoded = decode_sample(sample([grey(200), grey(100)]), recipe(), 0, out)
    assert decoded.frames == 2 and decoded.sample_id == "abc" and decoded.sentences == {"caption": ["a red ball"]}
    assert [int(np.median(frame)) for frame in out] == [200, 100, 0]


@pytest.mark.parametrize("height, width", [(32, 40), (40, 36), (64, 32), (100, 30), (200, 300), (16, 20)])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.0), (0.999, 0.999)])
def test_any_frame_becomes_a_square_without_distortion(height, width, place):
    across = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    square = fit(across, 32, place)
    assert square.shape == (32, 32, 3)
    short = min(height, width)
    side = 32 if 32 <= short <= 40 else short
    step = 255 / (width - 1) * side / 32  # the ramp's slope, a pixel of the square
    assert np.allclose(np.diff(square[16, 2:-2, 0].astype(float)).mean(), step, rtol=0.15)


def test_crop_is_one_for_all_frames_of_a_sample_and_another_for_another_epoch():
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    data, places = sample([noise] * 3), []
    for epoch in range(6):
        out = np.empty((3, 32, 32, 3), np.uint8)
        decode_sample(data, recipe(random_crop=True), epoch, out)
        assert (out[0] == out[1]).all() and (out[0] == out[2]).all()
        places.append(out[0].tobytes())
    assert len(set(places)) > 1


@pytest.mark.parametrize("height, width", [(20, 30), (64, 48), (65, 130), (300, 200)])
def test_stored_frames_of_any_size_show_the_same_picture(height, width):
    halves = np.concatenate([np.full((height // 2, width, 3), 40), np.full((height - height // 2, width, 3), 220)])
    out = np.empty((1, 32, 32, 3), np.uint8)
    decode_sample(sample([halves.astype(np.uint8)]), recipe(frames=1), 0, out)
    assert abs(int(out[0, 8].mean()) - 40) < 6 and abs(int(out[0, -8].mean()) - 220) < 6


def test_text_falls_back_to_the_member_where_the_json_has_no_sentences():
    out = np.empty((1, 32, 32, 3), np.uint8)
    decoded = decode_sample(sample([grey(1)], {"sample_id": "x"}), recipe(frames=1), 0, out)
    assert decoded.sentences == {"caption": ["a red ball"]}


@pytest.mark.parametrize(
    "data, kind",
    [
        (sample([]), "no_frames"),
        (sample([grey(1)], [1, 2]), "bad_json"),
        (sample([grey(1)], {"sample_id": "x", "sentences": {"caption": [" "]}}), "no_text"),
        (sample([grey(1)], {"sentences": {"caption": [None]}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": "a man walks"}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": {"en": "a man"}}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": 3}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": ["a"] * 513}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": ["a man " * 4000]}}), "bad_text"),
        (sample([grey(1)], {"sentences": {"caption": ["\ud83d"]}}), "bad_text"),
        (sample([grey(1)], {"caption": ["a man", "a dog"]}, text=None), "bad_text"),
        (sample([grey(1)], {"caption": {"en": "a man"}}, text=None), "bad_text"),
        (sample([grey(1)], {"caption": 5}, text=None), "bad_text"),
        (sample([grey(1)], {"caption": 1.5}, text=None), "bad_text"),
        (sample([grey(1)], {}, text=None), "no_text"),
        (sample([grey(1)], b"[" * 100_000), "bad_json"),
        (sample([grey(1)])[:2000], "bad_tar"),
        (sample([grey(1)])[100:], "bad_tar"),
        (sample([grey(1)])[:1024] + sample([grey(1)], key="000000002"), "bad_offsets"),
        (sample([grey(1)]).replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0"), "bad_jpeg"),
        (sample([grey(1)], names=["mp4"]).replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0"), "bad_video"),
        (sample([grey(1)], names=["png"]).replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0"), "bad_image"),
    ],
)
def test_unusable_samples_are_told_apart(data, kind):
    with pytest.raises(SampleError) as error:
        decode_sample(data, recipe(frames=1), 0, np.empty((1, 32, 32, 3), np.uint8))
    assert error.value.kind == kind


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises more than there is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("picture", [png(20_000, 20_000), png(40, 40)[:-16] + bytes(16)], ids=["huge", "broken"])
def test_a_damaged_picture_is_a_bad_sample_whatever_pillow_raises(picture):
    with pytest.raises(SampleError) as error:
        list(stored_frames({"png": picture}, lambda count: [0], "image"))
    assert error.value.kind == "bad_image"


def test_an_error_that_no_check_foresaw_costs_the_sample_alone(monkeypatch):
    def fail(*_):
        raise IndexError("odd")

    store, data = ByteStore(), sample([grey(1)])
    window = Window(0, *(np.array([value], np.int64) for value in (3, 0, len(data))))
    store.write(0, data)
    monkeypatch.setattr("trainer.decode.fit", fail)
    row = decode_row(0, 0, window, store, recipe(frames=1), False, np.empty((1, 32, 32, 3), np.uint8))
    store.close()
    assert row == Row(0, None, Failure("bad_sample", 3, "IndexError: odd"))


@given(st.lists(st.lists(SENTENCES, min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_no_token_of_any_sentence_is_lost(texts):
    batch = TextEncoder(CLIP)(texts)
    assert batch.tokens.shape[:2] == batch.mask.shape and batch.tokens.shape[2] == 16
    for sentences, tokens, mask, number in zip(texts, batch.tokens, batch.mask, batch.text_id.tolist()):
        seen = [t for row in tokens[mask].tolist() for t in row[1 : row.index(CLIP.eot_token_id)]]
        # A split between words changes no token; one inside a word too long for the context may, but drops no letter.
        assert "".join(CLIP.decode(seen).split()) == "".join(
            "".join(CLIP.decode(CLIP.encode(sentence)).split()) for sentence in sentences
        )
        assert number == text_id(sentences) and 0 <= number < 2**63
        assert mask.tolist() == sorted(mask.tolist(), reverse=True) and mask[0]


def test_a_sentence_that_fits_stays_one_row_and_an_over_long_one_is_cut_evenly():
    batch = TextEncoder(CLIP)([["a red ball"], [" ".join(["ball"] * 20)]])
    assert batch.mask.sum(1).tolist() == [1, 2]
    torch.testing.assert_close(batch.tokens[0, :1], CLIP(["a red ball"]))
    torch.testing.assert_close(batch.tokens[1], CLIP([" ".join(["ball"] * 10)] * 2))


def test_equal_texts_have_equal_ids_and_others_do_not():
    ids = TextEncoder(CLIP)([["a dog"], ["a cat"], ["a dog"]]).text_id.tolist()
    assert ids[0] == ids[2] != ids[1]
