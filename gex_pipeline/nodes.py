"""What is asked of a cluster before rows go out: does every node reach the output, does any have room for a stage."""

import uuid
from dataclasses import asdict

from gex_pipeline.cluster import first_line
from gex_pipeline.config import ExpandConfig, ResourcesConfig, StageResources
from shards import storage
from shards.errors import UserError

_PROBE_SECONDS = 60  # a node may have to start a worker first


def reserved(stage: StageResources) -> dict[str, float]:
    """The resources of a stage as Ray's options of a task."""
    memory = {} if stage.memory_gb is None else {"memory": stage.memory_gb * 1e9}
    gpus = {"num_gpus": stage.gpus} if stage.gpus else {}
    return {"num_cpus": stage.cpus, **memory, **gpus}


def check(config: ExpandConfig) -> None:
    """UserError for a stage that fits no node, and for nodes that do not share the output with the driver."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    check_room(config.resources, [node["Resources"] for node in alive])
    check_reach(config.output.path, {node["NodeID"]: node["NodeManagerAddress"] for node in alive})


def check_room(resources: ResourcesConfig, nodes: list[dict[str, float]]) -> None:
    """UserError where no node (its resources by Ray's names) could ever run a task of a stage: it would wait for ever."""
    for stage, wanted in asdict(resources).items():
        for name, unit, scale in (("cpus", "CPU", 1), ("memory_gb", "memory", 1e9), ("gpus", "GPU", 1)):
            largest = max(node.get(unit, 0) / scale for node in nodes)
            if wanted[name] is not None and wanted[name] > largest:
                raise UserError(
                    f"resources.{stage}.{name} is {wanted[name]:g}, and the largest node has {largest:.4g}; lower it, or "
                    "start larger nodes first"
                )


def check_reach(root: str, nodes: dict[str, str]) -> None:
    """Let every node (id -> address) read a file of the driver's under `root`, and write, read and delete one there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_tried)
    token = _temporary(root)
    storage.write_bytes_atomic(token, token.encode())
    try:
        asked = {
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(root, token): address
            for node, address in nodes.items()
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_SECONDS)
        for task, address in asked.items():
            if problem := _answer(task) if task in answered else f"did not answer within {_PROBE_SECONDS} s":
                raise UserError(
                    f"output.path: node {address}: {problem}; every node must read and write {root}: a shared file system, "
                    "or a bucket with credentials on each node"
                )
    finally:
        storage.delete(token)


def _answer(task) -> str:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return first_line(error)


def _tried(root: str, token: str) -> str:
    """What keeps this node from using the output, "" where nothing does."""
    own = _temporary(root)
    try:
        if storage.read_bytes(token) != token.encode():
            return "it finds another file where the driver wrote one"
        storage.write_bytes_atomic(own, b"probe")
        read = storage.read_bytes(own)
        storage.delete(own)
        return "" if read == b"probe" else "it does not read what it wrote"
    except FileNotFoundError:
        return "it does not find what the driver wrote"
    except Exception as error:  # clients of object stores raise exceptions of their own
        return f"{type(error).__name__}: {first_line(error)}"


def _temporary(root: str) -> str:
    """A name that no listing shows. If its writer dies, a local one is swept up (`storage.remove_temporaries`); in a
    bucket its few bytes stay."""
    return storage.join(root, f".probe.{uuid.uuid4().hex[:12]}.tmp")
