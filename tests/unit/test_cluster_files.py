"""The cluster files are what their readers accept, as far as that can be checked without a cluster."""

import copy
import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import ValidationError, validate
from ray.autoscaler._private import util

ROOT = Path(__file__).parents[2]
RAY_FILES = ROOT / "ops" / "ray"


def read(name: str) -> dict:
    return yaml.safe_load((RAY_FILES / name).read_text())


def only(required: str, optional: str = "", **types) -> dict:
    """A schema of an object with these fields and no others."""
    fields = {name: types.get(name, {}) for name in (required + " " + optional).split()}
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


# Fields of KubeRay 1.6's ray.io/v1 API that the manifest uses; a misspelt one would be dropped or refused by the server.
WHOLE, PARAMETERS = {"type": "integer", "minimum": 0}, {"type": "object", "additionalProperties": {"type": "string"}}
POD = only("spec", "metadata")
GROUP = only(
    "groupName template minReplicas maxReplicas", "replicas rayStartParams",
    template=POD, replicas=WHOLE, minReplicas=WHOLE, maxReplicas=WHOLE, rayStartParams=PARAMETERS,
)  # fmt: skip
CLUSTER = only(
    "headGroupSpec", "workerGroupSpecs rayVersion authOptions",
    headGroupSpec=only("template", "rayStartParams", template=POD, rayStartParams=PARAMETERS),
    workerGroupSpecs={"type": "array", "items": GROUP, "minItems": 1},
    authOptions=only("mode", mode={"enum": ["token", "disabled"]}),
)  # fmt: skip
JOB = only(
    "entrypoint rayClusterSpec", "backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished",
    rayClusterSpec=CLUSTER, backoffLimit=WHOLE, ttlSecondsAfterFinished=WHOLE, shutdownAfterJobFinishes={"type": "boolean"},
)  # fmt: skip
MANIFEST = only("apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, spec=JOB)


def groups(manifest: dict) -> list[dict]:
    cluster = manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def kubernetes_accepts(manifest: dict) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_ray_up_accepts_the_cluster_config():
    config = util.prepare_config(read("cluster.yaml"))
    util.validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    misspelt = copy.deepcopy(config) | {"setup_comands": []}
    with pytest.raises(ValidationError):
        util.validate_config(misspelt)


def test_ray_up_sends_the_token_and_not_the_environment():
    config = read("cluster.yaml")
    assert "~/.ray/auth_token" in config["file_mounts"] and config["rsync_filter"] == [".gitignore"]
    assert ".venv/" in (ROOT / ".gitignore").read_text().splitlines()
    starts = [line for name in ("head", "worker") for line in config[f"{name}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)


def test_a_job_reaches_the_cluster_and_runs_in_its_environment():
    """`ray job submit` goes to the dashboard, and `python` is looked up on the PATH of `ray start`."""
    head, worker = (read("cluster.yaml")[f"{name}_start_ray_commands"][-1] for name in ("head", "worker"))
    assert "--dashboard-host=0.0.0.0" in head
    assert all(line.startswith("PATH=~/gexia/.venv/bin:$PATH ") for line in (head, worker))


def test_kuberay_and_kubernetes_accept_the_rayjob():
    manifest = read("rayjob.yaml")
    validate(manifest, MANIFEST)
    for number, group in enumerate(groups(manifest)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": group["template"]["spec"]}
        kubernetes_accepts(pod)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_accepts(pod)


def test_the_claim_is_the_one_that_the_pods_mount():
    claim = read("claim.yaml")
    kubernetes_accepts(claim)
    volumes = [volume for group in groups(read("rayjob.yaml")) for volume in group["template"]["spec"]["volumes"]]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes} == {claim["metadata"]["name"]}


def test_the_image_copies_what_is_there_and_installs_extras_that_exist():
    dockerfile = (ROOT / "ops/docker/Dockerfile").read_text()
    for copied in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split()), copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert all(f"COPY {name} {name}" in dockerfile for name in packages)
    assert re.search(r"ARG STORES=(\S+)", dockerfile)[1] == "s3fs" and re.search(
        r"pip install .* \$\{STORES\}$", dockerfile, re.MULTILINE
    )
    extras = set(re.search(r"EXTRAS=(\S+) for", dockerfile)[1].split(",")) | {re.search(r"ARG EXTRAS=(\S+)", dockerfile)[1]}
    assert extras <= project["project"]["optional-dependencies"].keys()
    assert project["project"]["requires-python"] == ">=3.11" and "FROM python:3.11" in dockerfile


def test_rayjob_runs_a_config_that_ships_on_pods_that_share_the_data():
    spec = read("rayjob.yaml")["spec"]
    words = spec["entrypoint"].split()
    config = words[words.index("--config") + 1].removeprefix("/opt/gexia/")
    assert (ROOT / config).exists()
    for group in groups({"spec": spec}):
        pod = group["template"]["spec"]
        mounts = {m["name"]: m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert {v["name"] for v in pod["volumes"]} == set(mounts)
        assert words[words.index("--output.path") + 1].startswith(mounts["data"] + "/")


def test_rayjob_names_the_ray_version_that_is_pinned():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    spec = read("rayjob.yaml")["spec"]
    assert spec["rayClusterSpec"]["rayVersion"] == pinned["ray"]
