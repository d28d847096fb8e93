import importlib.util
import json
import os
import subprocess
import sys

import pytest

from pixr1_jax.core.topology import Topology, parse

# Rows of Google's tables: name, chips, cores, hosts, accelerator type, GKE's topology, accelerator and machine type.
TABLE = [
    ("v5e:1x1", 1, 1, 1, "v5litepod-1", "1x1", "tpu-v5-lite-podslice", "ct5lp-hightpu-1t"),
    ("v5e:2x4", 8, 8, 1, "v5litepod-8", "2x4", "tpu-v5-lite-podslice", "ct5lp-hightpu-8t"),
    ("v5e:16x16", 256, 256, 64, "v5litepod-256", "16x16", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
    ("v6e:2x2", 4, 4, 1, "v6e-4", "2x2", "tpu-v6e-slice", "ct6e-standard-4t"),
    ("v6e:4x4", 16, 16, 4, "v6e-16", "4x4", "tpu-v6e-slice", "ct6e-standard-4t"),
    ("v6e:16x16", 256, 256, 64, "v6e-256", "16x16", "tpu-v6e-slice", "ct6e-standard-4t"),
    ("v5p:2x2x1", 4, 8, 1, "v5p-8", "2x2x1", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    ("v5p:2x2x2", 8, 16, 2, "v5p-16", "2x2x2", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    ("v5p:4x4x4", 64, 128, 16, "v5p-128", "4x4x4", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    ("v5p:8x8x4", 256, 512, 64, "v5p-512", "4x8x8", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    ("v5p:24x16x16", 6144, 12288, 1536, "v5p-12288", "16x16x24", "tpu-v5p-slice", "ct5p-hightpu-4t"),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_topologies_are_those_of_googles_tables(row):
    found = parse(row[0])
    assert (
        found.name,
        found.chips,
        found.cores,
        found.hosts,
        found.accelerator_type,
        found.gke_topology,
        found.gke_accelerator,
        found.machine_type,
    ) == row
    assert parse(found.accelerator_type) == found
    assert found.hosts * found.chips_per_host == found.chips


def test_other_names_and_shapes():
    assert parse("v5e-256") == parse("v5litepod-256") == Topology("v5e", (16, 16))
    other = parse("v5p:4x4x12")
    assert (other.chips, other.accelerator_type, other.gke_topology) == (192, "v5p-384", "4x4x12")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v6e:16x17", ["16x17", "use one of 1x1", "16x16"]),
        ("v6e:4x4x4", ["v6e slice cannot be 4x4x4"]),
        ("v5p:6x4x4", ["6x4x4", "multiples of 4 up to 24x16x16"]),
        ("v5p:20x20x4", ["20x20x4"]),
        ("v5p:4x4x0", ["4x4x0"]),
        ("v6e-250", ["v6e-256"]),
        ("v5p-6", ["v5p-8", "TensorCores, two a chip"]),
        ("v9z-8", ["v9z-8", "v6e:16x16", "v5p-12288"]),
        ("", ["''"]),
        ("16x16", ["16x16"]),
    ],
)
def test_a_slice_that_is_not_there_is_one_line_with_those_that_are(text, words):
    with pytest.raises(ValueError) as error:
        parse(text)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")
def test_libtpu_knows_the_names():
    names = ["v5e:16x16", "v6e:16x16", "v5p:2x2x4", "v5p:8x8x4", "v5p:4x4x12"]
    code = (
        "import json, sys\n"
        "from jax.experimental import topologies\n"
        "get = lambda name: topologies.get_topology_desc(platform='tpu', topology_name=name).devices\n"
        "sizes = {name: (len(get(name)), len({d.process_index for d in get(name)})) for name in sys.argv[1:]}\n"
        "print(json.dumps(sizes))\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: [parse(name).chips, parse(name).hosts] for name in names}
