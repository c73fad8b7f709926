"""An event loop in a thread of its own: several rows, each in its thread, wait for one engine or server."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class Background:
    def __init__(self):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="llm").start()

    def run(self, work: Coroutine) -> Any:
        """Its result, computed in the loop; the calling thread waits."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
