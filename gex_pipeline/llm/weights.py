"""Where a model's files are, and which ones they are: found without loading anything and without the network."""

import hashlib
from pathlib import Path

from shards.errors import UserError

EDGE = 1 << 20  # bytes at either end of a file; weights are told apart by these, their size and the small files


def find(model: str | None) -> Path:
    """Folder of a model: the one named, or that of a hub name in the local cache; UserError where neither is."""
    if not model:
        raise UserError("compress.model is not set; name a model folder (config.json, tokenizer, weights)")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = cached(model)
    if not (folder / "config.json").is_file():
        raise UserError(f"compress.model: {folder} holds no config.json, so it is no model folder")
    return folder


def cached(name: str) -> Path:
    """Folder of a hub model in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise UserError(
            f"compress.model: there is no folder {name}, and no model of that name in the local hub cache"
        ) from None


def revision(folder: Path) -> str:
    """16 hex digits over a model folder's files (names, sizes, contents; of large ones the first and last MiB)."""
    sha = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            size = file.stat().st_size
            sha.update(f"{file.name}\0{size}\0".encode())
            with open(file, "rb") as stream:
                sha.update(stream.read(EDGE))
                stream.seek(max(size - EDGE, 0))
                sha.update(stream.read())
    return sha.hexdigest()[:16]
