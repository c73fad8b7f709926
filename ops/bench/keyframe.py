"""frames.policy keyframe against uniform, on the work set encoded anew with a key frame a second.

One process, one thread, through shards/video.py with JPEG encoding.
"""

import subprocess
import time
from pathlib import Path

import simplejpeg

from ops.bench import work
from ops.bench.common import emit
from shards import video


def encode_with_short_gops(paths: list[str], folder: Path) -> dict[str, str]:
    """Path -> its version with a key frame every 25 frames; made once and kept."""
    folder.mkdir(exist_ok=True)
    made = {path: str(folder / Path(path).name) for path in paths}
    for path, short in made.items():
        if not Path(short).exists():
            codec = ["-c:v", "libx264", "-preset", "faster", "-crf", "23", "-g", "25", "-sc_threshold", "0"]
            part = str(folder / "part.mp4")
            subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", path, *codec, part], check=True)
            Path(part).rename(short)
    return made


def read(policy: str, clips: dict[str, list]) -> tuple[float, float, int]:
    """(wall seconds, processor seconds, frames)."""
    recipe, frames = video.Recipe(policy=policy, decoders=("pyav",)), 0
    started, cpu = time.monotonic(), time.process_time()
    for path, cuts in clips.items():
        requests = [video.Request(*cut) for cut in cuts]
        for clip in video.read_clips(path, requests, recipe, lambda f: simplejpeg.encode_jpeg(f, 90, "RGB", "420")):
            assert clip.policy == policy, clip
            frames += len(clip.frames)
    return time.monotonic() - started, time.process_time() - cpu, frames


def main() -> None:
    parser = work.arguments(__doc__)
    args = parser.parse_args()
    folder = work.prepare(args)
    clips = work.clips_of(folder, args.sources)
    made = encode_with_short_gops(list(clips), folder / "gop25")
    clips = {made[path]: cuts for path, cuts in clips.items()}
    number = sum(map(len, clips.values()))
    results = {policy: read(policy, clips) for policy in ("uniform", "keyframe")}
    rows = []
    for policy, (wall, cpu, frames) in results.items():
        rows += [(policy, number / wall, "clips/s"), (f"{policy} by processor time", number / cpu, "clips/s")]
        rows += [(f"{policy} frames a clip", frames / number, "")]
    emit("keyframe", rows, results["uniform"][1] / results["keyframe"][1], ">= 5 times as fast, by processor time")


if __name__ == "__main__":
    main()
