"""The console script `gexia`: what a person runs by hand. Commands import their packages only when they run."""

import os
import sys
from importlib import import_module

from shards.errors import UserError

# command -> (module with main(argv) -> exit code, the extra it needs, one line for --help)
COMMANDS = {
    "expand": ("gex_pipeline.expand", "pipeline", "captioned clips in, published multi-grained shards out"),
    "import": ("gex_pipeline.import_benchmark", "pipeline", "a benchmark's files and videos in, published shards out"),
    "embed": ("trainer.embed", "train", "videos or texts in, a parquet file of their embeddings out"),
    "search": ("trainer.search", "train", "a text query: the samples of a dataset that fit it best, and a page"),
    "table": ("trainer.table", "train", "results of several runs in one comparison, beside published figures"),
    "assess": ("gex_pipeline.assess", "pipeline", "summary backends against references: ROUGE, BERTScore, seconds"),
    "stream": ("trainer.preview", "train", "preview: the first batches of each stream, as the model gets them"),
    "doctor": ("trainer.doctor", None, "what is installed, what works, and what to fix"),
    "shards": ("shards.cli", None, "validate, inspect and report on a published dataset"),
}

USAGE = """usage: gexia COMMAND ...

Multi-grained video-text pairs from captioned clips, and what to do with them.

commands:
{commands}

Each command explains itself: gexia COMMAND --help

examples:
  gexia expand --config configs/expand/local.yaml --input.path clips.jsonl --output.path out
  gexia shards validate out
  gexia shards report out

exit codes: 0 done; 1 problems found, or rows still pending; 2 bad config, input or usage
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code. A UserError becomes one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<10}{summary}" for name, (_, _, summary) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)), end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    try:
        code = _run(argv[0], argv[1:])
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gexia ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(command: str, argv: list[str]) -> int:
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}; there are {', '.join(COMMANDS)} (gexia --help)")
    module, extra, _ = COMMANDS[command]
    try:
        entry = import_module(module).main
    except ModuleNotFoundError as error:
        if extra is None or error.name.split(".")[0] == module.split(".")[0]:
            raise
        raise UserError(f"{command} needs {error.name}: pip install 'gexia[{extra}]'") from None
    return entry(argv) or 0


if __name__ == "__main__":
    sys.exit(main())
