"""What a storm of faults is made of: two Ray nodes, an output on a small disk, a server of videos with moods."""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil


class VideoServer:
    """Serves a few files under many names over HTTP; `mood` and `pace` change at any time.

    mood: well, fails (503), drops (the connection, in the middle of a file) or stalls (after half a file, until the
    mood has changed). pace: seconds before each answer, so that a job lasts without using a core.
    """

    def __init__(self, files: dict[str, bytes]):
        outer, self.files, self.mood, self.pace = self, files, "well", 0.0

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self._answer(body=False)

            def do_GET(self):
                time.sleep(outer.pace)
                self._answer(body=True)

            def _answer(self, body: bool):
                data, mood = outer.files.get(self.path.lstrip("/")), outer.mood
                if mood == "fails" or data is None:
                    self.send_error(503 if mood == "fails" else 404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    with suppress(ConnectionError):
                        self._send(data, mood)

            def _send(self, data: bytes, mood: str):
                half = len(data) // 2
                self.wfile.write(data[:half])
                while mood == "stalls" and outer.mood == "stalls":
                    time.sleep(0.1)
                if mood == "well":
                    self.wfile.write(data[half:])
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def small_disk(folder: Path, megabytes: int):
    """A tmpfs at `folder`; yields whether it could be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(folder: Path):
    """No byte fits on the folder's disk any more."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(shutil.disk_usage(folder).free or 4096))
    try:
        yield
    finally:
        ballast.unlink()


class Nodes:
    """Two raylets on this machine, one core each. The driver lives on the first; the second one may be killed."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster, self.seen = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}), set()
        self.cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return self.cluster.address

    def family(self, *words: str) -> list[psutil.Process]:
        """Living processes under both raylets whose command line has all words."""
        found = []
        for node in self.cluster.list_all_nodes():
            for _, pid in node.live_processes():
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(pid.pid)
                    found += [process, *process.children(recursive=True)]
        self.seen.update(found)
        return [process for process in found if has_words(process, words)]

    def replace_second(self) -> None:
        """kill -9 of its raylet, and a new node in its place."""
        self.family()
        (node,) = self.cluster.worker_nodes
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        time.sleep(1)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)

    def shutdown(self) -> list[psutil.Process]:
        """Ends the cluster; returns those of its processes, ever seen, that do not go within a minute and a half."""
        self.family()
        self.cluster.shutdown()
        return psutil.wait_procs(self.seen, timeout=90)[1]


def has_words(process: psutil.Process, words) -> bool:
    try:
        return all(word in " ".join(process.cmdline()) for word in words)
    except psutil.Error:
        return False
