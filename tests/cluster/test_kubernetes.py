"""Manifests of `cluster/kuberay/`, checked with the schemas of Kubernetes and the fields of KubeRay."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from tests.helpers.cluster_files import CLUSTER, KUBERAY, clusters, load
from txclf.config import run_config

KUBERNETES = "1.33"

# The fields of ray.io/v1 that KubeRay 1.5.1 and later have. A name in capitals is a table of its own; `Pod` and what
# else is Kubernetes' own is checked by its schemas.
STRINGS = {"*": str}
API: dict[str, dict[str, Any]] = {
    "RayCluster": {"apiVersion": str, "kind": str, "metadata": dict, "spec": "RayClusterSpec"},
    "RayJob": {"apiVersion": str, "kind": str, "metadata": dict, "spec": "RayJobSpec"},
    "RayClusterSpec": {
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": dict,
        "headGroupSpec": "HeadGroupSpec",
        "headServiceAnnotations": STRINGS,
        "managedBy": str,
        "rayVersion": str,
        "suspend": bool,
        "upgradeStrategy": {"type": str},
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"mode": {"disabled", "token"}},
    "AutoscalerOptions": {
        "env": list,
        "envFrom": list,
        "idleTimeoutSeconds": int,
        "image": str,
        "imagePullPolicy": str,
        "resources": dict,
        "securityContext": dict,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
        "volumeMounts": list,
    },
    "HeadGroupSpec": {
        "enableIngress": bool,
        "headService": dict,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "resources": STRINGS,
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
        "template": "Pod",
    },
    "WorkerGroupSpec": {
        "groupName": str,
        "idleTimeoutSeconds": int,
        "labels": STRINGS,
        "maxReplicas": int,
        "minReplicas": int,
        "numOfHosts": int,
        "rayStartParams": STRINGS,
        "replicas": int,
        "resources": STRINGS,
        "scaleStrategy": {"workersToDelete": list},
        "suspend": bool,
        "template": "Pod",
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "clusterSelector": STRINGS,
        "deletionStrategy": dict,
        "entrypoint": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "entrypointResources": str,
        "jobId": str,
        "managedBy": str,
        "metadata": STRINGS,
        "preRunningDeadlineSeconds": int,
        "rayClusterSpec": "RayClusterSpec",
        "runtimeEnvYAML": str,
        "shutdownAfterJobFinishes": bool,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "submitterConfig": {"backoffLimit": int},
        "submitterPodTemplate": "Pod",
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}


def faults(value: Any, kind: Any, place: str) -> Iterator[str]:
    """Return the problems of a manifest: unknown keys and values of another type."""
    if kind == "Pod":
        yield from pod_faults(value, place)
    elif isinstance(kind, str):
        yield from faults(value, API[kind], place)
    elif isinstance(kind, set):
        if value not in kind:
            yield f"{place}: {value!r} is none of {sorted(kind)}"
    elif isinstance(kind, list):
        for number, each in enumerate(value):
            yield from faults(each, kind[0], f"{place}[{number}]")
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{place}: {value!r} is no mapping"
            return
        for key, inner in value.items():
            if key in kind or "*" in kind:
                yield from faults(inner, kind.get(key, kind.get("*")), f"{place}.{key}")
            else:
                yield f"{place}.{key}: unknown"
    elif type(value) is not kind:  # a bool is no int
        yield f"{place}: {value!r} is no {kind.__name__}"


def pod_faults(template: dict[str, Any], place: str) -> Iterator[str]:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}), "spec": template.get("spec")}
    if set(template) - {"metadata", "spec"}:
        yield f"{place}: {sorted(set(template) - {'metadata', 'spec'})} unknown"
    try:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{place}.{'.'.join(map(str, error.path))}: {error.message}"
    spec = template["spec"]
    named = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in named:
                yield f"{place}: mounts `{mount['name']}`, which is no volume of the pod"


def checked(manifest: dict[str, Any]) -> list[str]:
    return list(faults(manifest, manifest["kind"], manifest["kind"]))


@pytest.mark.parametrize("name", KUBERAY)
def test_manifest_fits_the_schema(name: str) -> None:
    manifest = load(f"kuberay/{name}.yaml")
    assert manifest["apiVersion"] == "ray.io/v1"
    assert checked(manifest) == []


def test_volume_claim_is_mountable_by_all_pods() -> None:
    claim = load("kuberay/storage.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    with pytest.raises(kubernetes_validate.ValidationError, match="storageClass"):
        kubernetes_validate.validate({**claim, "spec": {**claim["spec"], "storageClass": "x"}}, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ((), "rayVersions", "1", "RayCluster.spec.rayVersions: unknown"),
        (("authOptions",), "mode", "tokens", "RayCluster.spec.authOptions.mode: 'tokens' is none of"),
        (("headGroupSpec",), "rayStartParams", {"num-cpus": 0}, "rayStartParams.num-cpus: 0 is no str"),
        (("workerGroupSpecs", 0), "minReplica", 1, "workerGroupSpecs[0].minReplica: unknown"),
        (("workerGroupSpecs", 0), "minReplicas", "1", "minReplicas: '1' is no int"),
        (("workerGroupSpecs", 1, "template", "spec"), "toleration", [], "toleration"),
        (("workerGroupSpecs", 1, "template", "spec"), "volumes", [], "mounts `storage`, which is no volume"),
        (("headGroupSpec", "template", "spec", "containers", 0), "volumeMount", [], "volumeMount"),
    ],
)
def test_broken_manifest_is_detected(path: tuple[Any, ...], key: str, value: Any, message: str) -> None:
    manifest = copy.deepcopy(load("kuberay/raycluster.yaml"))
    place = manifest["spec"]
    for part in path:
        place = place[part]
    place[key] = value
    found = checked(manifest)
    assert found
    assert message in " ".join(found)


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_share_storage_and_user(name: str) -> None:
    spec = clusters()[name]
    claim = load("kuberay/storage.yaml")["metadata"]["name"]
    groups = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    user = re.findall(r"^ARG USER_ID=(\d+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)[0]
    for pod in [spec["headGroupSpec"]["template"]["spec"], *groups.values()]:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/storage"] == "storage"
        assert mounts["/dev/shm"] == "shm"
        assert pod["securityContext"]["runAsUser"] == int(user)
    keys = {toleration["key"] for toleration in groups["gpu-spot"]["tolerations"]}
    assert {"nvidia.com/gpu", *groups["gpu-spot"]["nodeSelector"]} == keys
    assert groups["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # A run is refused if the running pods have no room for its minimum of workers.
    assert spec["workerGroupSpecs"][0]["minReplicas"] >= 1


@pytest.mark.parametrize(("name", "verb"), [("rayjob-train", "train"), ("rayjob-tune", "tune")])
def test_entrypoint_is_a_txclf_command(name: str, verb: str) -> None:
    job = load(f"kuberay/{name}.yaml")["spec"]
    words = job["entrypoint"].split()
    assert words[:3] == ["txclf-again", verb, "/jobs/run.yaml"]
    assert not set("'\"$;|&") & set(job["entrypoint"])  # it goes through two shells
    settings = run_config.load(None, words[3:])
    assert settings.storage.startswith("/storage/")
    worker = job["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert settings.compute.cpus_per_worker <= float(worker["cpu"])
    assert settings.compute.gpus_per_worker == float(worker["nvidia.com/gpu"])
    assert job["shutdownAfterJobFinishes"]
    assert job["backoffLimit"] >= 1
