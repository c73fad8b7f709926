"""What a config's keys mean, for `--help`: the comments beside the fields of its dataclasses, or else right above."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing


def describe(parser, config_class: type) -> None:
    """Give an argument parser's keys the comments of the dataclass that they were made from."""
    found = comments(config_class)
    for action in parser._actions:
        if action.dest in found:
            action.help = found[action.dest].replace("%", "%%")


def comments(config_class: type, prefix: str = "") -> dict[str, str]:
    """Dotted key -> comment, of a dataclass and the dataclasses in it; keys without one are not there."""
    source = textwrap.dedent(inspect.getsource(config_class))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    of_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    lines, kinds, found = source.splitlines(), typing.get_type_hints(config_class), {}
    for field in ast.parse(source).body[0].body:
        if not isinstance(field, ast.AnnAssign):
            continue
        above = field.lineno - 1
        while lines[above - 1].lstrip().startswith("#"):
            above -= 1
        beside = [of_line[line] for line in range(field.lineno, field.end_lineno + 1) if line in of_line]
        words = beside or [of_line[line] for line in range(above + 1, field.lineno)]
        if words:
            found[prefix + field.target.id] = " ".join(words)
        if dataclasses.is_dataclass(kinds[field.target.id]):
            found |= comments(kinds[field.target.id], f"{prefix}{field.target.id}.")
    return found
