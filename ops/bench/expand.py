"""The whole expansion against the bare decoder: clips a second with all cores, all granularities, no LLM.

The bound is ../shared/bench/expand_peers.py: as many processes as cores, one forward pass a source, frames resized in
the decoder and dropped. Ours is the job as a user starts it, on a private Ray. Ray's start-up (its processes, the check
of the nodes, the workers until the first row begins) is measured and left out; catalog, plan, commits and manifest are
in. The two take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ops.bench import work
from ops.bench.common import emit


def bound(folder: Path, output: Path) -> float:
    """Clips a second."""
    script = [sys.executable, work.SHARED / "bench/expand_peers.py", "bound", "--jpeg", "none"]
    more = ["--work", folder, "--out", output, "--procs", os.cpu_count()]
    done = subprocess.run(list(map(str, [*script, *more])), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])["clips_s"]


def ours(folder: Path, output: Path) -> dict:
    """One job in a fresh process: what `job` prints."""
    arguments = ["--job", str(folder), "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", "ops.bench.expand", *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def job(folder: Path, output: str) -> dict:
    """Run the expansion here, and take its time apart."""
    from gex_pipeline import cluster, expand, nodes, options

    spent = dict.fromkeys(("start", "check"), 0.0)
    began = []

    def timed(name: str, function):
        def wrapper(*arguments):
            started = time.monotonic()
            try:
                return function(*arguments)
            finally:
                spent[name] += time.monotonic() - started

        return wrapper

    def pipeline(rows, config, pipeline=expand.pipeline):
        began.append(time.time())
        yield from pipeline(rows, config)

    cluster.Session.start = timed("start", cluster.Session.start)
    nodes.check = timed("check", nodes.check)
    expand.pipeline = pipeline
    config = options.parse(["--input.path", str(folder / "clips.jsonl"), "--output.path", output])
    started = time.monotonic()
    assert expand.run(config) == expand.EXIT_DONE
    total = time.monotonic() - started
    first = min(
        p.stat().st_mtime - json.loads(p.read_text())["seconds"] for p in Path(output, "commits").glob("*.extract.json")
    )
    account = json.loads(Path(output, "run.json").read_text())
    startup = sum(spent.values()) + max(0.0, first - began[0])
    return {"clips": account["represented"], "total": total, "startup": startup, "busy": account["busy_seconds"]}


def main() -> None:
    parser = work.arguments(__doc__)
    parser.add_argument("--copies", type=int, default=3, help="of the work set, so that the rate is steady")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--job", type=Path, help="internal: expand this folder's clips")
    parser.add_argument("--output", help="internal: to here")
    args = parser.parse_args()
    if args.job:
        return print(json.dumps(job(args.job, args.output)))
    made = work.prepare(args)
    bounds, jobs = [], []
    with tempfile.TemporaryDirectory(dir=made) as scratch:
        folder = work.repeated(made, Path(scratch, "work"), args.copies, args.sources)
        for number in range(args.rounds):
            bounds.append(bound(folder, Path(scratch, "bound")))
            jobs.append(ours(folder, Path(scratch, f"out{number}")))
    rates = [job["clips"] / (job["total"] - job["startup"]) for job in jobs]
    last = jobs[-1]
    rows = [("bound", statistics.median(bounds), "clips/s"), ("ours", statistics.median(rates), "clips/s")]
    rows += [("Ray's start-up, left out", last["startup"], "s"), ("the job with start-up", last["total"], "s")]
    rows += [(f"ours: busy in {stage}", seconds, "s") for stage, seconds in last["busy"].items()]
    ratio = statistics.median(rates) / statistics.median(bounds)
    emit("expand", rows, ratio, ">= 0.85 of the bound, aim 0.95", clips=last["clips"], bounds=bounds, rates=rates)


if __name__ == "__main__":
    main()
