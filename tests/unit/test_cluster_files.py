"""The cluster files are what their readers accept, as far as that can be checked without a cluster."""

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[2]
RAY_FILES = ROOT / "ops" / "ray"


def test_cluster_config_satisfies_rays_own_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((RAY_FILES / "cluster.yaml").read_text()), schema)


def test_rayjob_runs_a_config_that_ships_on_pods_that_share_the_data():
    spec = yaml.safe_load((RAY_FILES / "rayjob.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    config = words[words.index("--config") + 1].removeprefix("/opt/gexia/")
    assert (ROOT / config).exists()
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        mounts = {m["name"]: m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert {v["name"] for v in pod["volumes"]} == set(mounts)
        assert words[words.index("--output.path") + 1].startswith(mounts["data"] + "/")


def test_rayjob_names_the_ray_version_that_is_pinned():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    spec = yaml.safe_load((RAY_FILES / "rayjob.yaml").read_text())["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == pinned["ray"]
