"""The dataset folder as the driver sees it: whose it is, which rows are open, what is published at the end."""

import fcntl
import json
import os
from dataclasses import asdict

import pyarrow as pa

from gex_pipeline import commit, identity, plan
from gex_pipeline.config import ExpandConfig
from shards import format, publish, storage
from shards.errors import UserError
from shards.writer import parquet_bytes

SETTINGS_FILE = "expand.json"
_LOCK_FILE = ".expand.lock"


class Output:
    """The dataset of one run. A context manager: on local storage a second run on the same folder is refused.

    On object stores there is no lock; there the first commit record of a row wins, and both runs write equal bytes.
    """

    def __init__(self, root: str):
        self.root, self._lock = root, None

    def __enter__(self) -> "Output":
        if storage.local_path(self.root) is not None:
            try:
                os.makedirs(self.root, exist_ok=True)
                self._lock = open(os.path.join(self.root, _LOCK_FILE), "w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                storage.remove_temporaries(self.root)
            except BlockingIOError:
                raise UserError(
                    f"output.path: another run is writing to {self.root}; wait for it, or choose another folder"
                ) from None
            except (PermissionError, NotADirectoryError, FileExistsError) as error:
                raise UserError(f"output.path: cannot write to {self.root}: {error.strerror}") from None
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._lock is not None:
            self._lock.close()  # the lock goes with it, as it does when the process dies

    def claim(self, config: ExpandConfig) -> None:
        """Make the folder this run's, or know it again; UserError if it holds something else."""
        settings = {"config_digest": identity.config_digest(config), "settings": _settings(config)}
        url = storage.join(self.root, SETTINGS_FILE)
        if storage.exists(storage.join(self.root, publish.MANIFEST_JSON)) and not storage.exists(url):
            raise UserError(f"output.path: {self.root} holds a dataset that this job did not make; choose an empty folder")
        if storage.create_once(url, format.canonical_json(settings)):
            return
        known = json.loads(storage.read_bytes(url))
        if known["config_digest"] != settings["config_digest"]:
            raise UserError(
                f"output.path: {self.root} was made with other settings ({_differences(known, settings)}); give the same "
                "ones, or choose an empty folder"
            )

    def write_ledger(self, name: str, ledger: pa.Table) -> None:
        storage.write_bytes_atomic(storage.join(self.root, "errors", f"{name}.parquet"), parquet_bytes(ledger))

    def open_rows(self) -> dict[int, int]:
        """Rows without a commit record -> their number of clips."""
        committed = set(publish.committed_rows(self.root))
        rows = plan.read(self.root)[1]
        pairs = zip(rows["row"].to_pylist(), rows["clips"].to_pylist())
        return {row: clips for row, clips in pairs if row not in committed}

    def withdraw_failed(self) -> None:
        """Open the rows again whose ledger has clips that failed in extraction."""
        for record in publish.read_commits(self.root):
            if record["failed_to_subsample"]:
                commit.withdraw(self.root, record["row"])

    def publish(self, config: ExpandConfig, plan_digest: str) -> dict:
        """Write the manifest over all committed rows and return it; what killed runs left half-written goes."""
        storage.remove_temporaries(self.root)
        digest = identity.config_digest(config)
        return publish.build_manifest(self.root, digest, plan_digest, identity.frame_settings(config), identity.versions())


def _settings(config: ExpandConfig) -> dict:
    """What the user may compare with when a digest differs."""
    return {
        "frames": identity.frame_settings(config),
        "compress": asdict(config.compress),
        "output": {"granularities": config.output.granularities},
    }


def _differences(known: dict, mine: dict) -> str:
    pairs = [
        f"{section}.{name}: {known['settings'][section].get(name)} there, {value} here"
        for section, values in mine["settings"].items()
        for name, value in values.items()
        if known["settings"][section].get(name) != value
    ]
    return "; ".join(pairs) or "the text of compress.prompt"
