"""`gexia shards validate|inspect|report DIR`."""

import argparse

from tqdm import tqdm

from shards import format, reader
from shards.errors import UserError


def main(argv: list[str]) -> int:
    """Run a subcommand; returns its exit code. UserError for what cannot be read or written."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{args.dataset}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gexia shards", description="Look at a published dataset.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    validate = commands.add_parser(
        "validate",
        help="check every byte against the format",
        description="Check every byte of a dataset against the format. One line a problem; exit 0 clean, 1 problems.",
    )
    validate.set_defaults(run=_validate)

    inspect = commands.add_parser(
        "inspect",
        help="counts, durations, text lengths, failures and one sample",
        description="Print what a dataset holds, and one of its samples.",
    )
    inspect.add_argument("--split", help="only this split")
    inspect.add_argument("--granularity", choices=format.GRANULARITIES, help="only this granularity")
    inspect.add_argument("--key", help="show this sample (default: the first)")
    inspect.set_defaults(run=_inspect)

    report = commands.add_parser(
        "report",
        help="write report.html: samples, texts, histograms",
        description="Write DIR/report.html, one self-contained page: samples with their texts, counts, histograms.",
    )
    report.set_defaults(run=_report)

    for command in (validate, inspect, report):
        command.add_argument("dataset", metavar="DIR", help="folder or fsspec URL of the dataset")
    return parser


def _validate(args: argparse.Namespace) -> int:
    from shards.validate import find_problems

    dataset = reader.open_dataset(args.dataset)
    found = 0
    for problem in find_problems(dataset):
        tqdm.write(f"PROBLEM {problem.path} {problem.key or '-'} {problem.message}")
        found += 1
    samples, size = sum(s.samples for s in dataset.shards), sum(s.bytes for s in dataset.shards)
    verdict = f"{found:,} problems" if found else "OK"
    print(f"{verdict}: {args.dataset}: {len(dataset.shards):,} shards, {samples:,} samples, {size / 1e6:,.1f} MB")
    return 1 if found else 0


def _inspect(args: argparse.Namespace) -> int:
    from shards import inspect

    inspect.print_dataset(reader.open_dataset(args.dataset), args.split, args.granularity, args.key)
    return 0


def _report(args: argparse.Namespace) -> int:
    from shards import report

    print(report.write(reader.open_dataset(args.dataset)))
    return 0
