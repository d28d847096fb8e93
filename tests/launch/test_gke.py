"""The objects for GKE against the official schemas, offline and strict, and what the schemas cannot know."""

import copy
import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch import gke
from launch.job import Job, LaunchConfig, pod_job
from pixr1_jax.core import topology

SCHEMAS = pathlib.Path(__file__).parent / "schemas"
LAUNCH = LaunchConfig(
    bucket="gs://bucket-of-ours/pixr1",
    image="eu-docker.pkg.dev/p/r/pixr1:1",
    queue="tpus",
    priority="high",
    service_account="trainer",
    spot=True,
    max_restarts=7,
    grace_seconds=90,
)
JOB = pod_job(Job("big-train", "train", "configs/pod.py:big", {"train.steps": 20, "seed": 3}, "big"))


def render(name="v6e-256", slices=1, launch=LAUNCH, job=JOB) -> dict:
    """A JobSet as it is read back from the file."""
    (found,) = yaml.safe_load_all(gke.to_yaml([gke.job_set(job, topology.parse(name), slices, launch)]))
    return found


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def validate(thing: dict) -> None:
    """Raises a ValidationError unless the official schemas accept an object."""
    validator(thing["kind"]).validate(thing)
    # Metadata is that of every object of Kubernetes.
    plain = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]}
    kubernetes_validate.validate(plain, kubernetes_validate.latest_version(), strict=True)
    for replicated in thing.get("spec", {}).get("replicatedJobs", []):
        child = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
        kubernetes_validate.validate(child, kubernetes_validate.latest_version(), strict=True)


def pod_of(job_set: dict) -> dict:
    return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("name", "slices"), [("v6e-256", 1), ("v5p:8x8x4", 2), ("v5litepod-16", 4), ("v6e-8", 1)])
def test_the_official_schemas_accept_it(name, slices):
    validate(render(name, slices))
    plain = LaunchConfig(bucket="gs://abc", image="image")
    validate(render(name, slices, plain))
    for thing in yaml.safe_load_all(gke.to_yaml(gke.queue(topology.parse(name), slices, LAUNCH))):
        validate(thing)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "label"), {}),
        (("metadata", "labels", "n"), 3),
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "maxRestarts"), "3"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "replica"), 2),
        (("spec", "replicatedJobs", 0, "template", "spec", "backOffLimit"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "nodeselector"), {}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "comand"), []),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 0, "value"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "volumes", 0, "csi", "bucket"), "x"),
        (("apiVersion",), "jobset.x-k8s.io/v1alpha1"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_schemas_refuse_a_wrong_field(path, value):
    broken = copy.deepcopy(render())
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(broken)


@pytest.mark.parametrize("kind", ["ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass"])
def test_the_schemas_of_the_queue_refuse_a_wrong_field(kind):
    things = {thing["kind"]: thing for thing in gke.queue(topology.parse("v6e-256"), 2, LAUNCH)}
    broken = copy.deepcopy(things[kind])
    broken.setdefault("spec", broken)["unheardOf"] = 1
    with pytest.raises(jsonschema.ValidationError, match="unheardOf"):
        validate(broken)


def test_a_slice_is_one_child_job_with_a_pod_a_host():
    found = render("v5p:8x8x4", slices=2)
    (slices,) = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    pod = pod_of(found)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x8x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    annotations = found["metadata"]["annotations"]
    assert annotations == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"


def test_the_run_keeps_everything_on_the_bucket():
    pod = pod_of(render())
    container = pod["containers"][0]
    assert container["command"] == [
        "bash",
        "-c",
        "exec pixr1 train --config=configs/pod.py:big --config.train.steps=20 --config.seed=3 --workdir=/bucket/big "
        "--stopped_code=75",
    ]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/bucket/compilation-cache"} in container["env"]
    assert container["volumeMounts"] == [{"name": "bucket", "mountPath": "/bucket"}]
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"] == {
        "bucketName": "bucket-of-ours",
        "mountOptions": "implicit-dirs,only-dir:pixr1",
    }
    assert pod["serviceAccountName"] == "trainer"


def test_failures_are_counted_and_preemptions_are_not():
    found = render()
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    # A child job fails for the reason PodFailurePolicy where a rule of its own says so: the two below.
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    conditions, codes = job["podFailurePolicy"]["rules"]
    assert conditions["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert codes["onExitCodes"] == {"operator": "In", "values": [75]}
    # Kubernetes takes a pod failure policy only for pods that are never restarted in place.
    assert pod_of(found)["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert pod_of(found)["terminationGracePeriodSeconds"] == 90


def test_the_quota_is_that_of_the_job():
    things = {thing["kind"]: thing for thing in gke.queue(topology.parse("v6e-256"), 2, LAUNCH)}
    (group,) = things["ClusterQueue"]["spec"]["resourceGroups"]
    assert group["flavors"] == [
        {"name": "v6e-16x16", "resources": [{"name": "google.com/tpu", "nominalQuota": 512}]},
    ]
    flavor = things["ResourceFlavor"]
    assert flavor["metadata"]["name"] == "v6e-16x16"
    assert flavor["spec"]["nodeLabels"].items() <= pod_of(render())["nodeSelector"].items()
    assert things["LocalQueue"]["spec"]["clusterQueue"] == things["ClusterQueue"]["metadata"]["name"]
    assert gke.queue(topology.parse("v6e-256"), 2, LaunchConfig()) == []


def test_slices_of_one_host_are_not_joined():
    with pytest.raises(ValueError, match="v6e:2x4 is one"):
        render("v6e-8", slices=2)
