"""ImageNet validation: a folder of images in one subfolder a class (wnid), and the class names in order of wnid."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_json
from shards.errors import UserError


def read(annotations: Annotations, images: list[str]) -> pa.Table:
    """One record an image, which is a video of one frame. `images` are the paths found under the folder."""
    names_file = annotations.require("*classnames*.json")
    names = read_json(names_file, list)
    folders = [path.split("/")[-2] for path in images]
    order = {folder: number for number, folder in enumerate(sorted(set(folders)))}
    if len(order) != len(names):
        raise UserError(f"--videos has images in {len(order)} class folders, but {names_file} names {len(names)} classes")
    return records.table(
        [
            records.whole_video(path.split("/")[-1], "val") | {"label": names[order[folder]], "label_id": order[folder]}
            for path, folder in zip(images, folders)
        ]
    )
