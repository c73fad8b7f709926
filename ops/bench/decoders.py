"""Which decoder comes first: speed on the work set, and right frames on files that are hard to seek in.

Speed: clips a second of one process with one thread, through shards/video.py, 8 frames a clip, no JPEG. Right frames:
every 7th of videos whose frames show their own time, read through shards/decoders.py, and by the library's own way to
get frames by index ("bare").
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np

from ops.bench import work
from ops.bench.common import emit
from shards import timeline, video
from shards.decoders import DECODERS
from tests.make_video import H264, ffmpeg, pattern_video, shown_ms

HARD_FILES = {
    "mp4": ("x.mp4", H264),
    "MPEG-TS": ("x.ts", [*H264, "-output_ts_offset", "1.3"]),
    "AVI": ("x.avi", ["-c:v", "mpeg4", "-g", "40", "-bf", "2", "-q:v", "1"]),
    "HEVC": ("hevc.mp4", ["-c:v", "libx265", "-crf", "10", "-x265-params", "log-level=none:keyint=40:open-gop=1"]),
    "variable rate": ("vfr.mp4", H264),
    "edit list": ("edit.mp4", None),
}


def speed(decoder: str, clips: dict) -> dict:
    recipe, done = video.Recipe(decoders=(decoder,)), 0
    list(DECODERS[decoder](next(iter(clips)), timeline.scan(next(iter(clips))), np.array([0]), lambda: None))  # imports
    started, cpu = time.monotonic(), time.process_time()
    for path, cuts in clips.items():
        results = list(video.read_clips(path, [video.Request(*cut) for cut in cuts], recipe))
        assert all(isinstance(result, video.Clip) for result in results), results
        done += len(results)
    return {"clips_s": done / (time.monotonic() - started), "cpu_clips_s": done / (time.process_time() - cpu)}


def make_hard_files(folder: Path) -> dict[str, Path]:
    paths = {}
    for what, (name, codec) in HARD_FILES.items():
        paths[what] = folder / name
        if codec is None:  # cut between key frames without encoding
            ffmpeg("-ss", "1.5", "-i", folder / "x.mp4", "-c", "copy", paths[what])
        else:
            moved = "setpts='round((N+8*floor(N/7))/25/TB)'" if what == "variable rate" else "null"
            pattern_video(paths[what], *codec, filter=moved)
    return paths


def correctness(path: str, decoder: str, bare: bool) -> Counter:
    """How many frames are right, wrong, or not given."""
    with av.open(path) as container:
        truth = [shown_ms(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    wanted = np.arange(3, len(truth), 7)
    if bare:
        frames = dict(zip(wanted.tolist(), BARE[decoder](path, wanted.tolist())))
    else:
        read = DECODERS[decoder](path, timeline.scan(path), wanted, lambda: None)
        frames = {i: None if frame is None else frame.to_ndarray(format="rgb24") for i, frame in read}
    verdicts = ("none" if f is None else "right" if shown_ms(f) == truth[i] else "wrong" for i, f in frames.items())
    return Counter(verdicts)


def bare_decord(path: str, wanted: list[int]):
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        yield from decord.VideoReader(path, num_threads=1).get_batch(wanted).asnumpy()
    except (decord.DECORDError, IndexError):
        yield from [None] * len(wanted)


def bare_torchcodec(path: str, wanted: list[int]):
    from torchcodec.decoders import VideoDecoder

    try:
        yield from VideoDecoder(path, dimension_order="NHWC").get_frames_at(wanted).data.numpy()
    except (RuntimeError, IndexError):
        yield from [None] * len(wanted)


BARE = {"decord": bare_decord, "torchcodec": bare_torchcodec}


def main() -> None:
    parser = work.arguments(__doc__)
    parser.add_argument("--decoder", help="internal: time this one and print its line")
    args = parser.parse_args()
    folder = work.prepare(args)
    if args.decoder:
        return print(json.dumps(speed(args.decoder, work.clips_of(folder, args.sources))))
    speeds = {}
    for decoder in DECODERS:  # each in a process of its own: they bring different FFmpegs along
        more = ["--decoder", decoder, "--work", str(folder), "--sources", str(args.sources)]
        done = subprocess.run([sys.executable, "-m", "ops.bench.decoders", *more], stdout=subprocess.PIPE, check=True)
        speeds[decoder] = json.loads(done.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as hard:
        paths = make_hard_files(Path(hard))
        sides = [(name, False) for name in DECODERS] + [(name, True) for name in BARE]
        frames = {
            f"{'bare ' * bare}{name}": {what: dict(correctness(str(path), name, bare)) for what, path in paths.items()}
            for name, bare in sides
        }
    for side, files in frames.items():
        told = ", ".join(
            f"{what} {'/'.join(str(c.get(v, 0)) for v in ('right', 'wrong', 'none'))}" for what, c in files.items()
        )
        print(f"  {side:<16} {told}")
    print("  (frames right/wrong/not given)")
    rows = [
        (f"{name}{what}", value[key], "clips/s")
        for key, what in (("clips_s", ""), ("cpu_clips_s", " by processor time"))
        for name, value in speeds.items()
    ]
    first, *others = (value["cpu_clips_s"] for value in speeds.values())
    emit("decoders", rows, first / max(others), "the first decoder is the fastest: >= 1, by processor time", frames=frames)


if __name__ == "__main__":
    main()
