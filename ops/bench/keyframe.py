"""frames.policy keyframe against uniform, on the work set encoded anew with a key frame a second.

One process, one thread, through shards/video.py with JPEG encoding; and the shared bound, which decodes every frame of
the same videos and encodes none.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import simplejpeg

from ops.bench import work
from ops.bench.common import emit
from shards import video


def with_short_gops(made: Path, sources: int) -> Path:
    """The work set's first sources with a key frame every 25 frames; encoded once and kept."""
    folder, lines = made / "gop25", []
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for path in work.clips_of(made, sources):
        short = folder / "videos" / Path(path).name
        if not short.exists():
            codec = ["-c:v", "libx264", "-preset", "faster", "-crf", "23", "-g", "25", "-sc_threshold", "0"]
            part = folder / "part.mp4"
            subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", path, *codec, part], check=True)
            part.rename(short)
        lines += [line for line in (made / "clips.jsonl").read_text().splitlines() if short.name in line]
    (folder / "clips.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def bound(folder: Path) -> dict:
    with tempfile.TemporaryDirectory() as output:
        script = [sys.executable, str(work.SHARED / "bench/expand_peers.py"), "bound", "--jpeg", "none", "--procs", "1"]
        done = subprocess.run([*script, "--work", str(folder), "--out", f"{output}/bound"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    folder = with_short_gops(work.prepare(args), args.sources)
    clips = work.clips_of(folder, args.sources)
    number, shared = sum(map(len, clips.values())), bound(folder)
    rows = [("bound", shared["clips_s"], "clips/s"), ("bound by processor time", number / shared["cpu_s"], "clips/s")]
    results = {policy: read(policy, clips) for policy in ("uniform", "keyframe")}
    for policy, (wall, cpu, frames) in results.items():
        rows += [(policy, number / wall, "clips/s"), (f"{policy} by processor time", number / cpu, "clips/s")]
        rows += [(f"{policy} frames a clip", frames / number, "")]
    cpu = results["keyframe"][1]
    target = ">= 5 times as fast as uniform, by processor time"
    emit("keyframe", rows, results["uniform"][1] / cpu, target, to_bound=round(shared["cpu_s"] / cpu, 4))


if __name__ == "__main__":
    main()
