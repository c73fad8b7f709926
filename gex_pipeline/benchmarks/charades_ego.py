"""Charades-Ego, multi-label: a csv with `id, actions, length`; actions `c092 11.90 21.20;c147 0.00 12.60`."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_csv_table, read_lines, reading
from shards.errors import UserError

CLASSES = ("Charades_v1_classes.txt", "charades_classes*.txt")
VIEWS = {
    "first": {  # first-person videos alone, as LaViLa reports
        "train": ("CharadesEgo_v1_train_only1st.csv*", "CharadesEgo_v0_egocentric_train.csv*"),
        "test": ("CharadesEgo_v1_test_only1st.csv*", "CharadesEgo_v0_egocentric_test.csv*"),
    },
    "all": {
        "train": ("CharadesEgo_v?_train.csv*",),
        "test": ("CharadesEgo_v?_test.csv*",),
    },
}


def read(annotations: Annotations, view: str) -> pa.Table:
    """One record a whole video: the phrases of its actions (none where it has none), the script as its caption."""
    classes = _classes(annotations.require(*CLASSES))
    rows = []
    for split, url in annotations.splits(VIEWS[view]).items():
        for number, row in enumerate(read_csv_table(url, ("id", "actions", "length")), 2):
            with reading(url, f"line {number}"):
                script = records.clean(row.get("script") or "")
                rows.append(
                    records.whole_video(row["id"], split)
                    | (records.captioned([script]) if script else {})
                    | {"duration": float(row["length"]) if row["length"] else None}
                    | {"labels": _labels(row["actions"], classes)}
                )
    return records.table(rows)


def _classes(url: str) -> dict[str, str]:
    """`c000 Holding some clothes` a line."""
    pairs = [line.strip().partition(" ") for line in read_lines(url)]
    if bad := [f"{code} {name}" for code, _, name in pairs if not (code[:1] == "c" and code[1:].isdigit() and name)]:
        raise UserError(f"{url}: no class line such as 'c000 Holding some clothes': {bad[0]!r}")
    return {code: name for code, _, name in pairs}


def _labels(actions: str, classes: dict[str, str]) -> list[str]:
    codes = {action.split()[0] for action in actions.split(";") if action.strip()}
    if unknown := sorted(codes - classes.keys()):
        raise ValueError(f"action {unknown[0]} is not in the class file")
    return [classes[code] for code in sorted(codes)]
