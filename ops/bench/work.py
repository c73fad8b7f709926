"""The work set of the benchmarks that decode: ../shared/bench/make_work.py's videos, made once and kept."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

SHARED = Path("../shared")
FOOTAGE = [SHARED / "data/footage/videos/onebyone.mp4", SHARED / "data/footage/videos/bottles.mp4"]


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/bench/work"), help="where the work set is, or will be")
    parser.add_argument("--footage", nargs="+", type=Path, default=FOOTAGE, help="videos that it is made from")
    parser.add_argument("--sources", type=int, default=10, help="60 s of 720p each")
    return parser


def prepare(args: argparse.Namespace) -> Path:
    """The folder with clips.jsonl and videos/."""
    if not (args.work / "work.json").exists():
        command = [
            sys.executable,
            SHARED / "bench/make_work.py",
            args.work,
            "--sources",
            args.sources,
            "--footage",
            *args.footage,
        ]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return args.work


def clips_of(work: Path, sources: int) -> dict[str, list[tuple[str, int, int]]]:
    """Path of a video -> its clips (clip_id, start_ms, end_ms), of the first sources."""
    found: dict[str, list] = {}
    for line in (work / "clips.jsonl").read_text().splitlines():
        clip = json.loads(line)
        cut = (clip["clip_id"], round(clip["start"] * 1000), round(clip["end"] * 1000))
        found.setdefault(str(work / clip["video"]), []).append(cut)
    return dict(list(found.items())[:sources])


def repeated(work: Path, folder: Path, copies: int, sources: int) -> Path:
    """The work set several times over, its videos under new names (links): enough work for a steady rate."""
    (folder / "videos").mkdir(parents=True)
    lines = []
    for copy in range(copies):
        for line in (work / "clips.jsonl").read_text().splitlines():
            clip = json.loads(line)
            if int(clip["source_id"][1:]) >= sources:
                continue
            name = f"{copy}_{Path(clip['video']).name}"
            if not (folder / "videos" / name).exists():
                os.link(work / clip["video"], folder / "videos" / name)
            names = {"clip_id": f"{copy}_{clip['clip_id']}", "source_id": f"{copy}_{clip['source_id']}"}
            lines.append(json.dumps({**clip, **names, "video": f"videos/{name}"}) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines))
    return folder
