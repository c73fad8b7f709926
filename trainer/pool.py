"""Plans -> decoded frames, in the main process or in workers."""

from collections.abc import Iterator

import numpy as np
import torch

from trainer.data_config import DataConfig
from trainer.plan import BatchPlan
from trainer.work import ByteStore, Row, decode_row, read_window


class Pool:
    def __init__(self, urls: list[str], data: DataConfig, slot_bytes: int):
        self._urls = urls
        self._store = ByteStore()

    def run(self, plans: Iterator[BatchPlan]) -> Iterator[tuple[BatchPlan, torch.Tensor, list[Row]]]:
        windows = {}
        for plan in plans:
            for key, window in plan.opened.items():
                window.base = self._store.allocate(window.nbytes)
                window.failed = read_window(window, self._urls, self._store)
                windows[key] = window
            size = plan.recipe.size
            frames = np.empty((len(plan.rows), plan.recipe.frames, size, size, 3), np.uint8)
            rows = [
                decode_row(row, draw, windows[key], self._store, plan.recipe, plan.replace, frames[row])
                for row, (key, draw) in enumerate(plan.rows)
            ]
            yield plan, torch.from_numpy(frames), rows
            for key in plan.closed:
                window = windows.pop(key)
                self._store.free(window.base, window.nbytes)

    def close(self) -> None:
        self._store.close()
