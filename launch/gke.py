"""A job as a JobSet of GKE, one child job a slice and one pod a host, and the queue of Kueue that admits it.

A pod that was preempted, or that SIGTERM stopped after it saved, restarts the set without counting against
`max_restarts`: a stopped stage ends with `STOPPED`, since with 0 its pod would be counted as done.

Sources: jobset.sigs.k8s.io (failure policy, exclusive placement, TPU multislice), kueue.sigs.k8s.io (run a JobSet),
cloud.google.com/kubernetes-engine/docs (TPUs, Cloud Storage FUSE).
"""

from __future__ import annotations

from typing import Any

import yaml

from launch.job import MOUNT, STOPPED, Job, LaunchConfig, environment
from pixr1_jax.core.topology import Topology

_TPU = "google.com/tpu"
# Ports of the TPU runtime and of the coordinator between slices; GKE sets up the pods that name them.
_PORTS = (8471, 8080)


def job_set(job: Job, topology: Topology, slices: int, launch: LaunchConfig) -> dict[str, Any]:
    """Returns the JobSet as Kubernetes takes it.

    Args:
        job: what each process runs; see `launch.job.pod_job`.
        topology: of one slice.
        slices: how many; the processes of several meet over the data center network.
        launch: needs `bucket` and `image`.

    Raises:
        ConfigError: a field of `launch` is missing.
        ValueError: GKE does not join slices of one host.
    """
    launch.require("bucket", "image")
    if slices > 1 and topology.hosts == 1:
        raise ValueError(f"GKE joins no slices of one host, and {topology.name} is one; take a larger --topology")
    labels = {"app.kubernetes.io/name": "pixr1"}
    if launch.queue:
        labels["kueue.x-k8s.io/queue-name"] = launch.queue
    if launch.priority:
        labels["kueue.x-k8s.io/priority-class"] = launch.priority
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": launch.namespace,
            "labels": labels,
            # All pods of a child job in one node pool, which is one slice, and none of another job in it.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": launch.max_restarts,
                # No pod starts before all old ones are gone: two generations would write the same checkpoints.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": slices, "template": {"spec": _slice_job(job, topology, launch)}}
            ],
        },
    }


def _slice_job(job: Job, topology: Topology, launch: LaunchConfig) -> dict[str, Any]:
    return {
        "parallelism": topology.hosts,
        "completions": topology.hosts,
        "completionMode": "Indexed",
        # One process less and the others wait in a collective: nothing but a restart of all helps.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [STOPPED]}},
            ]
        },
        "template": {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": _pod(job, topology, launch),
        },
    }


def _pod(job: Job, topology: Topology, launch: LaunchConfig) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": topology.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": topology.gke_topology,
    }
    if launch.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if launch.reservation:
        selector["cloud.google.com/reservation-name"] = launch.reservation
    options = ["implicit-dirs"] + ([f"only-dir:{launch.bucket_folder}"] if launch.bucket_folder else [])
    account = {"serviceAccountName": launch.service_account} if launch.service_account else {}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": launch.grace_seconds,
        **account,
        "nodeSelector": selector,
        "containers": [
            {
                "name": "pixr1",
                "image": launch.image,
                "command": ["bash", "-c", job.script],
                "env": [{"name": name, "value": value} for name, value in environment().items()],
                "ports": [{"containerPort": port} for port in _PORTS],
                # The TPU runtime locks more memory than a plain container may.
                "securityContext": {"privileged": True},
                "resources": {"limits": {_TPU: topology.chips_per_host}},
                "volumeMounts": [{"name": "bucket", "mountPath": MOUNT}],
            }
        ],
        "volumes": [
            {
                "name": "bucket",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {"bucketName": launch.bucket_name, "mountOptions": ",".join(options)},
                },
            }
        ],
    }


def queue(topology: Topology, slices: int, launch: LaunchConfig) -> list[dict[str, Any]]:
    """Returns what a new cluster needs before Kueue admits such jobs: a flavor, a cluster queue, a local queue.

    The quota is that of one job; none where `launch.queue` is not given.
    """
    if not launch.queue:
        return []
    flavor = f"{topology.generation}-{topology.gke_topology}"
    labels = {
        "cloud.google.com/gke-tpu-accelerator": topology.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": topology.gke_topology,
    }
    quota = {"name": _TPU, "nominalQuota": topology.chips * slices}
    group = {"coveredResources": [_TPU], "flavors": [{"name": flavor, "resources": [quota]}]}
    api = "kueue.x-k8s.io/v1beta2"
    found: list[dict[str, Any]] = [
        {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": flavor}, "spec": {"nodeLabels": labels}},
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": launch.queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": launch.queue, "namespace": launch.namespace},
            "spec": {"clusterQueue": launch.queue},
        },
    ]
    if launch.priority:
        metadata = {"name": launch.priority}
        found.append({"apiVersion": api, "kind": "WorkloadPriorityClass", "metadata": metadata, "value": 1000})
    return found


def to_yaml(objects: list[dict[str, Any]]) -> str:
    """Returns objects as one YAML file, their fields in the order given."""
    return yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True, width=1 << 16)
