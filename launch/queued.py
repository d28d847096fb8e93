"""A job as a shell script for queued resources: Cloud TPU machines without Kubernetes.

The script asks for the slices, waits, runs the image on every machine, and does so again after failures and
preemptions until the stage is finished. It may be stopped and started again at any time: what is there is used.

Sources: cloud.google.com/tpu/docs/queued-resources and the reference of gcloud compute tpus.
"""

from __future__ import annotations

import shlex
import string

from launch.job import MOUNT, STOPPED, Job, LaunchConfig, environment
from pixr1_jax.core import topology as topology_lib
from pixr1_jax.core.topology import Topology

_RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}

_SCRIPT = string.Template(
    r"""#!/usr/bin/env bash
# $title
# Stop it with Ctrl-C: the run saves and its machines stay. Run it again to go on.
# To give the machines back: gcloud compute tpus queued-resources delete $name --force --project=... --zone=...
set -euo pipefail

name=$name
where=(--project=$project --zone=$zone)
nodes=($nodes)
max_restarts=$max_restarts
grace_seconds=$grace_seconds

# On every machine: the bucket is mounted, and the image's registry known.
prepare=$$(cat <<'END'
$prepare
END
)
# On every machine: one process of the job.
run=$$(cat <<'END'
$run
END
)
stop="sudo docker stop --time=$$grace_seconds $name >/dev/null 2>&1 || true"

state() {
  gcloud compute tpus queued-resources describe "$$name" "$${where[@]}" --format='value(state.state)' 2>/dev/null \
    || echo MISSING
}

request() {
  gcloud compute tpus queued-resources create "$$name" "$${where[@]}" \
    $request
}

obtain() {
  while true; do
    case "$$(state)" in
      ACTIVE) return ;;
      MISSING) request ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "pixr1: the machines are gone, asking for others"
        gcloud compute tpus queued-resources delete "$$name" "$${where[@]}" --force --quiet ;;
      *) ;; # they are on their way
    esac
    sleep 30
  done
}

# One command on all machines of all slices; fails if it fails on any.
everywhere() {
  local node pids=() failed=0
  for node in "$${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$$node" "$${where[@]}" --worker=all --quiet --command="$$1" &
    pids+=("$$!")
  done
  for pid in "$${pids[@]}"; do wait "$$pid" || failed=1; done
  return "$$failed"
}

leave() {
  trap - INT TERM
  echo "pixr1: stopping; the run saves"
  everywhere "$$stop" || true
  wait
  exit $stopped
}
trap leave INT TERM

restarts=0
while true; do
  obtain
  # What an earlier attempt left would hold the chips. In the background, since a trap waits for what runs before it.
  { everywhere "$$stop" && everywhere "$$prepare" && everywhere "$$run"; } &
  if wait "$$!"; then
    echo "pixr1: finished"
    exit 0
  fi
  sleep 60 # a preemption takes a while to show
  if [[ "$$(state)" == ACTIVE ]]; then
    restarts=$$((restarts + 1))
    if ((restarts > max_restarts)); then
      echo "pixr1: failed $$restarts times, giving up" >&2
      exit 1
    fi
    echo "pixr1: restart $$restarts of $$max_restarts"
  fi
done
"""
)

_PREPARE = string.Template(
    r"""set -e
if ! command -v gcsfuse >/dev/null; then
  release=gcsfuse-$$(lsb_release -c -s)
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$$key" >/dev/null
  echo "deb [signed-by=$$key] https://packages.cloud.google.com/apt $$release main" \
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
fi
sudo mkdir -p $mount
mountpoint -q $mount || sudo gcsfuse --implicit-dirs $folder-o allow_other $bucket $mount
sudo gcloud auth configure-docker $registry --quiet >/dev/null 2>&1"""
)


def script(job: Job, topology: Topology, slices: int, launch: LaunchConfig) -> str:
    """Returns the script.

    Args:
        job: what each process runs; see `launch.job.pod_job`.
        topology: of one slice.
        slices: how many; the processes of several meet over the data center network.
        launch: needs `bucket`, `image`, `project` and `zone`.

    Raises:
        ConfigError: a field of `launch` is missing.
        ValueError: the slice has a shape that queued resources do not offer.
    """
    launch.require("bucket", "image", "project", "zone")
    nodes = [job.name] if slices == 1 else [f"{job.name}-{index}" for index in range(slices)]
    folder = f"--only-dir={launch.bucket_folder} " if launch.bucket_folder else ""
    prepare = _PREPARE.substitute(
        mount=MOUNT,
        bucket=shlex.quote(launch.bucket_name),
        folder=folder,
        registry=shlex.quote(launch.image.partition("/")[0]),
    )
    return _SCRIPT.substitute(
        title=f"{job.name}: {job.stage} of {job.config} on {slices} x {topology.name} ({topology.accelerator_type})",
        name=job.name,
        project=shlex.quote(launch.project),
        zone=shlex.quote(launch.zone),
        nodes=" ".join(nodes),
        max_restarts=launch.max_restarts,
        grace_seconds=launch.grace_seconds,
        prepare=prepare,
        run=_docker(job, launch),
        request=" ".join(map(shlex.quote, _request(job, topology, slices, launch))),
        stopped=STOPPED,
    )


def _docker(job: Job, launch: LaunchConfig) -> str:
    variables = [f"--env={name}={value}" for name, value in environment().items()]
    words = ["sudo", "docker", "run", "--rm", f"--name={job.name}", "--privileged", "--network=host"]
    words += [f"--stop-timeout={launch.grace_seconds}", f"--volume={MOUNT}:{MOUNT}", *variables]
    return shlex.join([*words, launch.image, "bash", "-c", job.script])


def _request(job: Job, topology: Topology, slices: int, launch: LaunchConfig) -> list[str]:
    """The flags of `queued-resources create` beside name, project and zone."""
    usual = topology_lib.parse(topology.accelerator_type)
    if sorted(usual.shape) != sorted(topology.shape):
        raise ValueError(
            f"queued resources have {usual.accelerator_type} as {usual.gke_topology} only, not "
            f"{topology.gke_topology}; change --topology, or use --to=gke"
        )
    words = [f"--accelerator-type={topology.accelerator_type}"]
    words.append(f"--runtime-version={launch.runtime or _RUNTIMES[topology.generation]}")
    words += [f"--node-id={job.name}"] if slices == 1 else [f"--node-count={slices}", f"--node-prefix={job.name}"]
    if launch.spot:
        words.append("--spot")
    if launch.reservation:
        words.append("--reserved")
    return words
