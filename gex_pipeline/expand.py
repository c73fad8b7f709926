"""The expansion job: a catalog of captioned clips in, published multi-grained shards out.

    python -m gex_pipeline.expand --config configs/expand/local.yaml --input.path clips.jsonl --output.path DATASET

Grouping touches metadata only; its result is the plan. Everything after it works row by row (a row is one shard
number), and what a stage makes lies on storage, so Ray passes only row numbers around, a row is committed alone, and
a run that died goes on where it stopped.
"""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

from gex_pipeline import catalog, cluster, commit, dry_run, nodes, plan, summary
from gex_pipeline.compose import compose_row
from gex_pipeline.compress import COUNTS, Compressor
from gex_pipeline.config import ExpandConfig
from gex_pipeline.errors import Transient
from gex_pipeline.extract import extract_row
from gex_pipeline.options import check, parse
from gex_pipeline.output import Output
from gex_pipeline.progress import Progress
from shards.errors import UserError
from shards.format import LONG

# Why a row is pending of which nothing was heard.
_LOST = "no answer: its worker died again and again (out of memory?), or the cluster did"
STAGES = ("fetch", "extract", "compress", "compose")  # as times are told; fetch: extraction's waiting for videos
EXIT_DONE, EXIT_INCOMPLETE, EXIT_USER = 0, 1, 2

# Rows a block: one, so that rows spread over the cluster, until there are so many that Ray's own bookkeeping shows.
_MAX_BLOCKS = 5_000
# How often a row is given to another worker when its worker died; then it stays pending, and the others go on.
_RETRIES = 3
# Rows in the compose stage at once, per core: it mostly waits for storage.
_COMPOSED_PER_CPU = 4


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        return run(parse(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:  # a full disk, storage that is away
        print(f"error: {error}; what is committed stays: mend that and start the same command again", file=sys.stderr)
        return EXIT_INCOMPLETE


def run(config: ExpandConfig) -> int:
    """Expand: catalog -> plan -> (extract -> compress -> compose) of each row -> manifest and summary."""
    check(config)
    clips, ledger, counts = catalog.load(config)
    config.input.video_root = catalog.video_root(config.input)  # workers find the videos by it
    print(f"{counts['rows_in']:,} rows, {counts['clips']:,} clips", file=sys.stderr)
    if not counts["clips"]:
        raise UserError(f"input.path: {config.input.path} has no usable clip ({_by_kind(ledger)})")
    if config.dry_run:
        print("\n".join([*dry_run.report(plan.build(clips, config), config), "dry run: nothing was written"]))
        return EXIT_DONE
    work = summary.Work()
    with Output(config.output.path) as output, cluster.Session(config.ray) as session:
        output.claim(config)
        if plan.uses_ray(counts["clips"], config):
            session.start()
        record = plan.write(plan.build(clips, config), output.root)
        del clips
        output.write_ledger("catalog", ledger)
        if config.retry_failed:
            output.withdraw_failed()
        if rows := output.open_rows():
            session.start()
            nodes.check(config)
            with Progress(record["clips"], record["clips"] - sum(rows.values())) as progress:
                process(rows, config, work, progress)
                process({row: rows[row] for row in work.pending}, config, work, progress)
        manifest = output.publish(config, record["digest"])
        account = summary.conclude(output.root, manifest, counts, _kinds(ledger), work)
    print("\n".join(summary.lines(account, config.output.path)))
    too_many = account["failed_fraction"] > config.max_failed_fraction
    if too_many:
        print(f"{account['failed_fraction']:.1%} failed, max_failed_fraction is {config.max_failed_fraction}", file=sys.stderr)
    return EXIT_INCOMPLETE if work.pending or too_many else EXIT_DONE


def process(rows: dict[int, int], config: ExpandConfig, work: summary.Work, progress: Progress) -> None:
    """Take rows (number -> clips) through all stages; `work` says afterwards which of them are pending."""
    work.pending |= dict.fromkeys(rows, _LOST)
    try:
        for item in pipeline(rows, config):
            if item["refused"]:
                raise UserError(item["pending"])
            for name in STAGES:
                work.spans[name] += [item[name]] if name in item else []
            made = item.get("summaries", {})
            work.generated[item["row"]] += made.get("generated", 0)  # stored, though a later stage may leave the row pending
            if item["pending"]:
                work.pending[item["row"]] = item["pending"]
            else:
                work.pending.pop(item["row"], None)
                work.rows += 1
                work.summaries.update(made and made | {"generated": work.generated[item["row"]]})
                progress.add(item["clips"])
    except cluster.failures() as error:  # the cluster broke down, not a row
        print(f"Ray: {cluster.first_line(error)}", file=sys.stderr)


def pipeline(rows: dict[int, int], config: ExpandConfig) -> Iterator[dict]:
    """The rows through Ray Data, as small dicts. The model works on one row while the next ones are decoded."""
    import ray

    if not rows:
        return
    blank = {"pending": "", "refused": False, "fetch": [0.0, 0.0]}
    items = [{"row": row, "clips": clips, **blank} for row, clips in rows.items()]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS))
    resources = config.resources
    dataset = dataset.map(stage("extract", extract_row, config), max_retries=_RETRIES, **nodes.reserved(resources.extract))
    if LONG in config.output.granularities:
        dataset = dataset.map(compress_actor(config), **compress_pool(config))
    # Ray Data keeps part of the cluster back for a stage without a cap, and two cores would then decode on one.
    cap = min(len(items), _COMPOSED_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 0))))
    waiting = nodes.reserved(resources.compose)
    dataset = dataset.map(stage("compose", compose_row, config), concurrency=cap, max_retries=_RETRIES, **waiting)
    yield from dataset.iter_rows()


def compress_actor(config: ExpandConfig) -> type:
    """The compress stage as an actor class: the model is loaded once. One that cannot be loaded ends the run."""

    class Compress:
        def __init__(self):
            self.compressor, self.refusal = None, ""
            try:
                self.compressor = Compressor(config)
            except UserError as error:
                self.refusal = str(error)
            except Exception as error:  # whatever a model's own code raises
                traceback.print_exc()
                self.refusal = f"compress: the model does not load: {type(error).__name__}: {' '.join(str(error).split())}"

        def __call__(self, item: dict) -> dict:
            if self.refusal:
                return {**item, "pending": self.refusal, "refused": True}
            counts = dict.fromkeys(COUNTS, 0)
            step = stage("compress", lambda root, row, config: counts.update(self.compressor(row)), config)
            return {**step(item), "summaries": counts}

    return Compress


def compress_pool(config: ExpandConfig) -> dict:
    """Options of that stage's actors: how many, on what, in which environment, and how many rows each has at once."""
    from ray.data import ActorPoolStrategy

    settings = config.compress
    # Engines and servers batch by themselves; a model in our own hands takes one row after another.
    at_once = settings.rows_in_flight if settings.backend in ("vllm", "openai") else 1
    pool = ActorPoolStrategy(
        size=settings.actors, max_concurrent_calls_per_actor=at_once, enable_true_multi_threading=at_once > 1
    )
    environment = {"env_vars": settings.env} if settings.env else {}
    if settings.python:
        environment["py_executable"] = settings.python
    reserved = nodes.reserved(config.resources.compress)
    return {"compute": pool, "runtime_env": environment or None, "max_task_retries": _RETRIES, **reserved}


def stage(name: str, work: Callable, config: ExpandConfig) -> Callable[[dict], dict]:
    """`work(root, row, config)` as a stage: its time is noted, and a row that must stay pending passes the later stages by."""

    def step(item: dict) -> dict:
        started, why, root, row = time.time(), item["pending"], config.output.path, int(item["row"])
        if not why:
            try:
                if not commit.is_done(root, row):  # another run may be at work on an object store
                    made = work(root, row, config)
                    if name == "extract":
                        fetched = started + made["fetch_seconds"]
                        item, started = {**item, "fetch": [started, fetched]}, fetched
            except (Transient, OSError, UserError) as error:
                why = f"{name}: {error}"
            except Exception as error:  # a fault of ours: the other rows go on, and the run ends with exit code 1
                traceback.print_exc()
                why = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
        return {**item, "pending": why, name: [started, time.time()]}

    return step


def _kinds(ledger) -> dict[str, int]:
    return dict(Counter(ledger["kind"].to_pylist()))


def _by_kind(ledger) -> str:
    return ", ".join(f"{kind} {n:,}" for kind, n in _kinds(ledger).items()) or "all rows were filtered out"


if __name__ == "__main__":
    sys.exit(main())
