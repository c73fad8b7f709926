"""MP4 members: what goes in comes out, in every reader of the format, and the same again."""

import threading

import numpy as np
import pytest
from make_dataset import make_dataset
from make_video import BITS, shown_ms

from shards import format, mp4, reader, report, validate, video
from shards.writer import ShardWriter


def card(ms: int, width=256, height=64) -> np.ndarray:
    """A frame that shows its own timestamp."""
    row = np.array([255 * (ms >> (x * BITS // width) & 1) for x in range(width)], np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def encoded(times, **size) -> bytes:
    encoder = mp4.Encoder(crf=18)
    for ms in times:
        encoder.write(card(ms, **size), ms - times[0])
    return encoder.close()


TIMES = [1000 + 40 * i + 7 * (i % 3) for i in range(120)]  # uneven, and more than one keyframe


@pytest.fixture(scope="module")
def member():
    return encoded(TIMES)


def test_frames_come_back_by_position_at_their_times(member):
    width, height, times = mp4.describe(member)
    assert (width, height) == (256, 64) and times == [ms - TIMES[0] for ms in TIMES]
    chosen = [119, 0, 64, 64, 7]
    assert [shown_ms(frame) for frame in video.read_frames(member, chosen)] == [TIMES[i] for i in chosen]
    with pytest.raises(video.VideoError, match="120 frames, asked for 120"):
        video.read_frames(member, [3, 120])


def test_equal_frames_give_equal_bytes(member):
    assert encoded(TIMES) == member
    assert mp4.describe(encoded([5]))[2] == [0]  # a single frame is a video too


@pytest.mark.parametrize("size", [{}, {"width": 512}, {"width": 128, "height": 96}])
def test_joined_parts_keep_their_frames_and_start_where_they_are_told(member, size):
    """Also parts of another size, which are fitted into the first one's."""
    other = encoded(TIMES[:30], **size)
    joined = mp4.join([member, other, member], [0, 5000, 7000], crf=18, deadline=60)
    width, height, times = mp4.describe(joined)
    own = [ms - TIMES[0] for ms in TIMES]
    assert (width, height) == (256, 64)
    assert times == [*own, *(5000 + ms for ms in own[:30]), *(7000 + ms for ms in own)]
    assert [shown_ms(f) for f in video.read_frames(joined, [119, 150])] == [TIMES[119], TIMES[0]]
    if size != {"width": 128, "height": 96}:  # that one is narrower than the first: it has black on both sides
        assert [shown_ms(f) for f in video.read_frames(joined, [120, 149])] == [TIMES[0], TIMES[29]]
    assert joined == mp4.join([member, other, member], [0, 5000, 7000], crf=18, deadline=60)


def test_a_stuck_ffmpeg_is_killed_at_its_deadline():
    encoder, before = mp4.Encoder(crf=18, deadline=0.3), threading.active_count()
    encoder.write(card(0), 0)
    encoder._timer.join()
    with pytest.raises(mp4.EncoderError, match="deadline"):
        for ms in range(1, 5000):
            encoder.write(card(ms), ms)
        encoder.close()
    encoder.discard()
    assert threading.active_count() == before


def test_a_frame_follows_the_one_before_by_a_millisecond_at_least():
    """Video of more than 1000 frames a second, or two frames that round to the same millisecond."""
    encoder = mp4.Encoder(crf=18)
    for ms in (0, 33, 67, 67, 67, 68, 100):
        encoder.write(card(ms), ms)
    part = encoder.close()
    assert mp4.describe(part)[2] == [0, 33, 67, 68, 69, 70, 100]
    joined = mp4.join([part, encoded([0], width=512)], [0, 100], crf=18, deadline=60)
    assert mp4.describe(joined)[2][-2:] == [100, 101]


def test_ffmpeg_that_was_not_late_is_not_said_to_be():
    encoder = mp4.Encoder(crf=18, deadline=60)
    encoder.write(card(0), 0)
    encoder._process.kill()
    with pytest.raises(mp4.EncoderError, match="ffmpeg ended with -9: (?!.*deadline)"):
        for ms in range(1, 5000):
            encoder.write(card(ms), ms)


def test_given_up_leaves_no_process():
    encoder = mp4.Encoder(crf=18)
    encoder.write(card(0), 0)
    process = encoder._process
    encoder.discard()
    assert process.returncode is not None


def test_what_is_no_video_is_told_in_one_line():
    for data in (b"", b"not a video" * 100):
        with pytest.raises(ValueError, match="not a readable MP4"):
            mp4.describe(data)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("mp4")
    make_dataset(root, shorts={"train": 4}, longs={"train": 2}, rows=1, mp4=True)
    return root


def test_validator_and_report_know_videos(dataset):
    assert validate.validate(str(dataset)) == []
    shown = report.render(reader.open_dataset(str(dataset)))
    assert shown.count("data:image/jpeg") > 4 * 2


def test_validator_finds_a_video_that_is_not_what_its_json_says(dataset, tmp_path):
    opened = reader.open_dataset(str(dataset))
    shard = opened.select("train", format.SHORT)[0]
    members = opened.read_sample(shard, opened.sidecar(shard).to_pylist()[0])
    assert list(members) == ["json", "txt", "mp4"]
    from shards import checks

    fields = checks.parse_fields(bytes(members["json"]))
    told = list(checks.check_frames(members, {**fields, "width": 10, "frame_ms": [0]}))
    assert told == ["mp4 is 96x64, json says 10x64", "mp4 has 4 frames, json has 1 timestamps"]
    assert list(checks.check_frames({"mp4": b"nothing"}, fields))[0].startswith("mp4 is not a readable MP4")
    with ShardWriter(str(tmp_path), "train", format.SHORT, 0) as writer, pytest.raises(ValueError, match="0 frames"):
        writer.add(
            sample_id="a", source_id="a", clip_ids=["a"], meta={**fields, "frame_ms": []}, texts={}, frames=b"",
            duration_ms=1, decoder="pyav",
        )  # fmt: skip
