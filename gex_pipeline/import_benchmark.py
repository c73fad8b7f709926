"""`gexia import`: a benchmark's own annotation files and videos -> published shards, through the ordinary expansion.

One whole video, or its annotated segment, becomes one `short` sample (`integrate.by none`). What the import knows
beyond the samples lies in OUT/import/: the catalog, and import.json with the number of annotated samples and videos
of each split and the names of missing videos, so that every table can say "N of M videos", and all classes that the
annotations name, so that missing videos make no task easier.
"""

import argparse
import tempfile

import polars as pl

from gex_pipeline import expand
from gex_pipeline.benchmarks.registry import BENCHMARKS, read, variant_of
from gex_pipeline.benchmarks.videos import Coverage, named_from
from shards import reader, storage
from shards.errors import UserError
from shards.format import IMPORT_RECORD, SHORT, canonical_json
from shards.publish import MANIFEST_JSON

FOLDER, RECORD = IMPORT_RECORD.split("/")
CATALOG = "catalog.jsonl"
SHOWN_MISSING = 5


def main(argv: list[str]) -> int:
    """Run `gexia import` and return its exit code; arguments that it does not know go to the expansion as keys."""
    args, overrides = _parser().parse_known_args(argv)
    rows, coverage = read(args.name, args.annotations, args.videos, args.variant)
    if rows.is_empty():
        raise UserError(f"--annotations {args.annotations}: no sample of {args.name} in it")
    rows = named_from(rows, args.videos)
    _print_coverage(args.name, rows, coverage)
    if args.dry_run == "true":
        with tempfile.TemporaryDirectory() as folder:
            catalog = _write_catalog(folder, rows)
            return expand.main([*_expand_arguments(args, catalog), "--dry_run", "true", *overrides])
    catalog = _publish(args, rows, coverage)
    code = expand.main([*_expand_arguments(args, catalog), *overrides])
    if code != expand.EXIT_USER and storage.exists(storage.join(args.output, MANIFEST_JSON)):
        _print_published(args.output, rows)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gexia import",
        description="A benchmark's own annotation files and videos -> published shards.",
        epilog="Further arguments are keys of the expansion, such as --frames.per_clip 16.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--annotations", required=True, help="folder with the benchmark's files, or one of them")
    parser.add_argument("--videos", required=True, help="folder or URL; files are found by id, at any depth")
    parser.add_argument("--output", required=True, help="folder or URL of the dataset")
    parser.add_argument("--variant", help="train list, task, official split or view, where there are several")
    parser.add_argument("--dry_run", nargs="?", const="true", default="false", choices=["true", "false"])
    return parser


def _expand_arguments(args: argparse.Namespace, catalog: str) -> list[str]:
    keys = {
        "input.path": catalog,
        "input.video_root": args.videos,
        "input.duplicates": "refuse",
        "integrate.by": "none",
        "compress.backend": "none",
        "frames.per_clip": BENCHMARKS[args.name].frames,
        "output.path": args.output,
        "output.granularities": f"[{SHORT}]",
    }
    return [part for key, value in keys.items() for part in (f"--{key}", str(value))]


def _publish(args: argparse.Namespace, rows: pl.DataFrame, coverage: Coverage) -> str:
    """Write OUT/import/, unless another run of this import has; the catalog's path."""
    record = {
        "benchmark": args.name,
        "variant": variant_of(args.name, args.variant),
        "splits": {split: _sizes(part) for (split,), part in rows.group_by("split")},
        "videos": coverage.total,
        "missing_videos": coverage.missing,
        "classes": classes(rows),
    }
    folder = storage.join(args.output, FOLDER)
    catalog = storage.join(folder, CATALOG)
    if storage.exists(catalog):
        if storage.read_bytes(catalog) != _catalog_bytes(rows):
            raise UserError(
                f"--output {args.output}: holds another import, or the video files have changed; choose a new folder"
            )
    elif storage.list_dir(args.output):
        raise UserError(f"--output {args.output}: holds something else already; choose a new folder")
    storage.write_bytes_atomic(storage.join(folder, RECORD), canonical_json(record) + b"\n")
    return _write_catalog(folder, rows)


def _write_catalog(folder: str, rows: pl.DataFrame) -> str:
    path = storage.join(folder, CATALOG)
    storage.write_bytes_atomic(path, _catalog_bytes(rows))
    return path


def _catalog_bytes(rows: pl.DataFrame) -> bytes:
    return rows.write_ndjson().encode()


def _sizes(part: pl.DataFrame) -> dict[str, int]:
    return {"samples": part.height, "videos": part["source_id"].n_unique()}


def classes(rows: pl.DataFrame) -> list[dict]:
    """The class fields that samples can have, each once, as in a sample's json."""
    if "label" in rows.columns:
        return rows.select(pl.col("^label(_id)?$")).drop_nulls("label").unique().sort(pl.all()).to_dicts()
    if "labels" in rows.columns:
        return [{"labels": rows["labels"].explode().drop_nulls().unique().sort().to_list()}]
    return []


def _print_coverage(name: str, rows: pl.DataFrame, coverage: Coverage) -> None:
    counts = rows.group_by("split").len().sort("split")
    splits = ", ".join(f"{split} {samples:,}" for split, samples in counts.iter_rows())
    print(f"{name}: {coverage}; samples: {splits}")
    if coverage.missing:
        shown = ", ".join(coverage.missing[:SHOWN_MISSING])
        more = len(coverage.missing) - SHOWN_MISSING
        print(f"missing: {shown}{f' and {more:,} more' if more > 0 else ''}")


def _print_published(output: str, rows: pl.DataFrame) -> None:
    """What of each split can be evaluated: missing files and files that gave no frames are both left out."""
    dataset = reader.open_dataset(output)
    for (split,), part in sorted(rows.group_by("split")):
        sidecars = [pl.from_arrow(dataset.sidecar(shard)) for shard in dataset.select(split, SHORT)]
        done = pl.concat(sidecars).filter(pl.col("status") == "ok") if sidecars else part.clear()
        annotated = _sizes(part)
        published = _sizes(done)
        print(
            f"{split}: {published['videos']:,} of {annotated['videos']:,} videos, "
            f"{published['samples']:,} of {annotated['samples']:,} samples"
        )
    print(f"what was annotated, and what is missing: {storage.join(output, FOLDER, RECORD)}")
