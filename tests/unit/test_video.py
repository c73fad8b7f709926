"""shards/video.py: the right frames, whatever the file. Every frame of these videos shows its own timestamp."""

import bisect
import errno
import importlib.util
import os

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_video import H264, ffmpeg, pattern_video, shown_ms

from shards import decoders, timeline, video
from shards.video import Clip, Failure, Recipe, Request

X265 = ("-c:v", "libx265", "-crf", "10", "-x265-params", "log-level=none:keyint=40:open-gop=1")
# name -> arguments of pattern_video
FILES = {
    "one_keyframe.mp4": [*H264[:4], "-g", "1000", "-bf", "0"],
    "open_gop.mp4": [*H264[:4], "-g", "40", "-bf", "3", "-x264-params", "open-gop=1:b-pyramid=normal"],
    "start_not_zero.mkv": [*H264, "-output_ts_offset", "1.3"],
    "start_not_zero.ts": [*H264, "-output_ts_offset", "1.3"],
    "no_real_timestamps.avi": H264,
    "b_frames.avi": ["-c:v", "mpeg4", "-g", "40", "-bf", "2", "-q:v", "1"],
    "hevc.mp4": X265,
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "40", "-crf", "10", "-b:v", "0", "-deadline", "realtime"],
    "program_stream.mpg": ["-c:v", "mpeg2video", "-g", "15", "-bf", "2", "-q:v", "2"],
    "raw.h264": H264,
}
# In the other files these count other frames than there are; they must then give none.
DECORD_READS = {"one_keyframe.mp4", "open_gop.mp4", "start_not_zero.mkv", "hevc.mp4", "vp9.webm", "variable_rate.mp4"}
READS = {
    "pyav": {*FILES, "variable_rate.mp4", "edit_list.mp4"},
    "decord": DECORD_READS,
    "torchcodec": {*DECORD_READS, "edit_list.mp4"},
}
TORCHCODEC = importlib.util.find_spec("torchcodec") is not None
EVERY_DECODER = [
    pytest.param(name, marks=pytest.mark.skipif(name == "torchcodec" and not TORCHCODEC, reason="torchcodec is not installed"))
    for name in decoders.DECODERS
]
VARIABLE_RATE = "setpts='round((N+8*floor(N/7))/25/TB)'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, codec in FILES.items():
        pattern_video(folder / name, *codec)
    pattern_video(folder / "variable_rate.mp4", filter=VARIABLE_RATE)
    pattern_video(folder / "wide_pixels.mp4", filter="setsar=2")  # shown twice as wide as they are high
    pattern_video(folder / "square_of_wide_pixels.mp4", filter="pad=256:256,setsar=2")  # nothing in its size tells a turn
    # Cut between keyframes without encoding: an edit list hides the frames before the cut.
    ffmpeg("-ss", "1.5", "-i", folder / "open_gop.mp4", "-c", "copy", folder / "edit_list.mp4")
    return folder


def truth(path) -> list[int]:
    """What each frame shows, decoded one after the other by ffmpeg's own rules."""
    with av.open(str(path)) as container:
        return [shown_ms(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", [*FILES, "variable_rate.mp4", "edit_list.mp4"])
@pytest.mark.parametrize("decoder", EVERY_DECODER)
def test_every_frame_is_the_one_whose_time_was_asked_for(folder, name, decoder):
    path = str(folder / name)
    timeline, shown = video.scan(path), truth(path)
    assert len(shown) == len(timeline.ms) and timeline.ms[0] == 0
    assert all(abs(showing - shown[0] - ms) <= 1 for showing, ms in zip(shown, timeline.ms.tolist()))
    wanted = np.arange(3, len(timeline.ms), 7)
    frames = dict(decoders.DECODERS[decoder](path, timeline, wanted, lambda: None))
    assert list(frames) == wanted.tolist()
    if name not in READS[decoder]:
        assert set(frames.values()) == {None}
        return
    assert {i: shown_ms(f.to_ndarray(format="rgb24")) for i, f in frames.items()} == {i: shown[i] for i in frames}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_clips_show_what_is_on_screen_at_even_midpoints(folder, data):
    name = data.draw(st.sampled_from(["open_gop.mp4", "variable_rate.mp4", "start_not_zero.ts", "hevc.mp4"]))
    path, per_clip = str(folder / name), data.draw(st.integers(1, 6))
    order = data.draw(st.sampled_from([("pyav",), ("decord", "pyav")] + [("torchcodec", "pyav")] * TORCHCODEC))
    ms, end = (timeline := video.scan(path)).ms.tolist(), timeline.end_ms
    spans = st.tuples(st.integers(0, end + 500), st.integers(1, 3000))
    requests = [Request(str(i), s, s + d) for i, (s, d) in enumerate(data.draw(st.lists(spans, max_size=5)))]
    results = {r.clip_id: r for r in video.read_clips(path, requests, Recipe(per_clip=per_clip, decoders=order))}
    assert set(results) == {request.clip_id for request in requests}
    for request in requests:
        result, stop = results[request.clip_id], min(request.end_ms, end)
        inside = [t for t in ms if request.start_ms <= t < stop]
        if not inside:
            assert result.kind == ("start_after_end_of_video" if request.start_ms >= end else "no_frames")
            continue
        step = (stop - request.start_ms) / per_clip
        times = [request.start_ms + (i + 0.5) * step for i in range(per_clip)]
        times.append(request.start_ms + (stop - request.start_ms) / 2)
        expected = [max(ms[bisect.bisect_right(ms, t) - 1], inside[0]) for t in times]
        assert [*result.frame_ms, result.middle_ms] == expected
        assert [shown_ms(f) for f in [*result.frames, result.middle]] == pytest.approx(expected, abs=1)
        assert result.duration_ms == stop - request.start_ms


def test_only_what_a_clip_needs_is_decoded(folder):
    """The pass starts at the keyframe before the clip, ends with it, and leaves unreferenced frames out."""
    path, decoded = str(folder / "open_gop.mp4"), []
    requests = [Request("a", 2000, 2400)]
    (clip,) = video.read_clips(path, requests, Recipe(per_clip=1), progress=decoded.append)
    assert isinstance(clip, Clip) and len(decoded) < 30  # of 100 frames; keyframes are 40 apart


def test_overlapping_clips_come_from_one_pass(folder):
    path, decoded = str(folder / "one_keyframe.mp4"), []
    requests = [Request(str(i), i * 100, None) for i in range(20)]
    clips = list(video.read_clips(path, requests, Recipe(per_clip=8), progress=decoded.append))
    assert len(clips) == 20 and len(decoded) <= 100 + 2 * 20 + 2


def test_whole_file_and_single_image(folder, tmp_path):
    (clip,) = video.read_clips(str(folder / "hevc.mp4"), [Request("whole", None, None)], Recipe(per_clip=4))
    assert (clip.frame_ms, clip.middle_ms, clip.duration_ms) == ([480, 1480, 2480, 3480], 2000, 4000)
    pattern_video(tmp_path / "still.jpg", "-frames:v", "1")
    (still,) = video.read_clips(str(tmp_path / "still.jpg"), [Request("still", None, None)], Recipe(per_clip=3))
    assert still.frame_ms == [0, 0, 0]


def test_a_clip_says_which_decoder_read_it(folder, monkeypatch):
    """The next one is asked once; what none can read fails with the last one's word."""
    requests, order = [Request("a", 500, 900)], Recipe(decoders=("decord", "pyav"))
    found = [next(video.read_clips(str(folder / name), requests, order)) for name in ("hevc.mp4", "start_not_zero.ts")]
    assert [clip.decoder for clip in found] == ["decord", "pyav"]
    asked = []

    def blind(path, timeline, wanted, tick):
        asked.append(path)
        yield from ((position, None) for position in wanted.tolist())

    monkeypatch.setitem(decoders.DECODERS, "pyav", blind)
    (clip,) = video.read_clips(str(folder / "hevc.mp4"), requests, Recipe())
    (failure,) = video.read_clips(str(folder / "start_not_zero.ts"), requests, Recipe())
    assert (clip.decoder, failure.decoder, failure.kind, len(asked)) == ("decord", "decord", "corrupt", 2)


@pytest.mark.parametrize("decoder", EVERY_DECODER)
@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize(
    "name, width, height", [("open_gop.mp4", 256, 64), ("wide_pixels.mp4", 512, 64), ("square_of_wide_pixels.mp4", 512, 256)]
)
def test_rotation_flags_turn_the_picture_and_its_pixels(folder, tmp_path, degrees, decoder, name, width, height):
    turned = tmp_path / f"{degrees}.mp4"
    ffmpeg("-i", folder / name, "-metadata:s:v:0", f"rotate={degrees}", "-c", "copy", turned)
    (clip,) = video.read_clips(str(turned), [Request("a", 1000, 1400)], Recipe(per_clip=1, decoders=(decoder,)))
    assert clip.decoder == decoder
    assert clip.frames[0].shape == ((height, width, 3) if degrees == 180 else (width, height, 3))
    assert shown_ms(np.rot90(clip.frames[0], -degrees // 90)) == clip.frame_ms[0]


def test_sizes_are_even_keep_the_shape_and_never_grow():
    assert video.target_size(1280, 720, None, 256) == (456, 256)
    assert video.target_size(720, 1280, None, 256) == (256, 456)
    assert video.target_size(99, 51, None, 256) == (98, 50)
    assert video.target_size(720, 576, 16 / 11, 288) == (524, 288)  # pixels wider than high


@pytest.mark.parametrize("mp4, width", [(False, 65_600), (True, 16_400)])
def test_frames_too_long_to_be_written_are_told_by_kind(tmp_path, mp4, width):
    ffmpeg("-f", "lavfi", "-i", f"color=s={width}x16:d=1:r=1", "-frames:v", "1", tmp_path / "a.png")
    with pytest.raises(video.VideoError, match=f"{width}x16 pixels to be stored, at most .* on a side") as caught:
        list(video.read_clips(str(tmp_path / "a.png"), [Request("a", None, None)], Recipe(mp4=mp4)))
    assert caught.value.kind == "too_large"


def test_what_comes_before_damage_is_read_and_what_follows_is_not(folder, tmp_path):
    """Zeros over one packet: clips up to it and from the next keyframe on are whole, the others fail."""
    path = tmp_path / "damaged.mkv"
    pattern_video(path, *H264[:4], "-g", "25", "-bf", "0", "-x264-params", "scenecut=0")
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][30]
        where, size = path.read_bytes().find(bytes(packet)), packet.size
    data = bytearray(path.read_bytes())
    data[where : where + size] = b"\xff" * size
    path.write_bytes(data)
    requests = [Request(str(s), s, s + 400) for s in range(0, 3600, 400)]
    results = {int(r.clip_id): r for r in video.read_clips(str(path), requests, Recipe(per_clip=4))}
    assert {s for s, r in results.items() if isinstance(r, Failure)} == {1200, 1600}
    assert {r.kind for r in results.values() if isinstance(r, Failure)} == {"corrupt"}
    for start, clip in results.items():
        if isinstance(clip, Clip):
            assert [shown_ms(frame) for frame in clip.frames] == clip.frame_ms


DAMAGED = {
    "h264.mp4": ["-c:v", "libx264"],
    "hevc.mkv": ["-c:v", "libx265", "-x265-params", "log-level=none"],
    "vp9.webm": ["-c:v", "libvpx-vp9"],
    "h264.ts": ["-c:v", "libx264"],
    "mpeg4.avi": ["-c:v", "mpeg4"],
    "prores.mov": ["-c:v", "prores"],
    "still.png": ["-frames:v", "1"],
}


def damaged(whole: bytes, seed: int = 0):
    """Copies of a file that are cut, end in zeros, have a hole, or have a few bytes changed."""
    size, rng = len(whole), np.random.default_rng(seed)
    for at in [*range(10, 300, 29), *range(size // 9, size, size // 9 + 1), *range(size - 40, size, 9)]:
        yield whole[:at]
    for at in range(size // 9, size, size // 9 + 1):
        yield whole[:at] + bytes(size - at)
        yield whole[:at] + bytes(size // 20) + whole[at + size // 20 :]
    for within in [600] * 20 + [size] * 20:
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(0, min(within, size), 4)] = rng.integers(0, 256, 4)
        yield changed.tobytes()


@pytest.mark.parametrize("name", DAMAGED)
def test_no_damage_is_taken_for_anything_else(tmp_path, name):
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=1.5", *DAMAGED[name], tmp_path / name)
    requests = [Request("whole", None, None), Request("middle", 300, 900)]
    for data in damaged((tmp_path / name).read_bytes()):
        (tmp_path / "damaged").write_bytes(data)
        try:
            results = list(video.read_clips(str(tmp_path / "damaged"), requests, Recipe(per_clip=4, decoders=("pyav",))))
        except video.VideoError:
            continue
        assert sorted(result.clip_id for result in results) == ["middle", "whole"]


def test_a_damaged_frame_costs_its_own_clips_only(tmp_path):
    """Also one that FFmpeg forbids ("operation not permitted"), as it does in ProRes."""
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=128x96:r=10:d=6", "-c:v", "prores", tmp_path / "a.mov")
    data = bytearray((tmp_path / "a.mov").read_bytes())
    data[len(data) // 2 : len(data) * 11 // 20] = bytes(len(data) * 11 // 20 - len(data) // 2)
    (tmp_path / "a.mov").write_bytes(data)
    requests = [Request(str(s), s, s + 1000) for s in range(0, 6000, 1000)]
    results = video.read_clips(str(tmp_path / "a.mov"), requests, Recipe())
    assert {result.clip_id: result.kind for result in results if isinstance(result, Failure)} == {"3000": "corrupt"}


def test_colours_that_cannot_be_converted_fail_as_damage(folder, tmp_path):
    ictcp = ("-c", "copy", "-bsf:v", "h264_metadata=matrix_coefficients=14")
    ffmpeg("-i", folder / "one_keyframe.mp4", *ictcp, tmp_path / "a.mp4")
    (failure,) = video.read_clips(str(tmp_path / "a.mp4"), [Request("a", None, None)], Recipe(decoders=("pyav",)))
    assert failure.kind == "corrupt"


def test_a_file_that_cannot_be_read_is_not_called_damaged(folder, tmp_path, monkeypatch):
    """FFmpeg says EIO of this cut file. The same of a disk in trouble: then reading the file says it too."""
    path = tmp_path / "cut.webm"
    path.write_bytes((folder / "vp9.webm").read_bytes()[:200])
    with pytest.raises(video.VideoError):
        video.scan(str(path))

    def broken(*args, **keys):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(timeline, "open", broken, raising=False)
    with pytest.raises(OSError, match="Input/output error"):
        video.scan(str(path))


def test_a_fault_of_reading_that_has_passed_shortens_no_video(folder, monkeypatch):
    """One EIO in the middle of a whole file, which can be read again afterwards."""
    path, faults = str(folder / "one_keyframe.mp4"), iter([True])
    whole = video.scan(path)

    class Faulty:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._container.close()

        def demux(self, stream):
            for number, packet in enumerate(self._container.demux(stream)):
                if number == 4 and next(faults, False):
                    raise av.error.OSError(errno.EIO, "Input/output error")
                yield packet

    opened = timeline.open_container
    monkeypatch.setattr(timeline, "open_container", lambda *asked: Faulty(opened(*asked)))
    assert video.scan(path).end_ms == whole.end_ms and not next(faults, False)


def test_files_that_are_no_videos_are_named_by_kind(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "sound.m4a")
    names = ["text.mp4", "empty.mp4", "pipe.mp4", "sound.m4a", "missing.mp4", "."]
    kinds = []
    for name in names:
        with pytest.raises(video.VideoError) as caught:
            list(video.read_clips(str(tmp_path / name), [Request("a", None, None)], Recipe(per_clip=1)))
        kinds.append(caught.value.kind)
    assert kinds == ["not_a_video", "empty_file", "not_a_file", "no_video_stream", "missing_file", "not_a_file"]


def test_real_files_that_break_naive_readers(shared_data):
    expected = {"av1_video.mkv": 125, "h265_video.mp4": 10, "unordered.mov": 4, "corrupted.mp4": 50}
    for name, frames in expected.items():
        path = str(shared_data / "edge" / name)
        assert len(video.scan(path).ms) == frames
        whole, first = Request("whole", None, None), Request("first", 0, 100)
        results = {r.clip_id: r for r in video.read_clips(path, [whole, first], Recipe(per_clip=4))}
        assert isinstance(results["first"], Clip)
        assert isinstance(results["whole"], Failure if name == "corrupted.mp4" else Clip)
