"""All tests run on eight CPU devices, with flax nnx in tree mode."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402 (the platform is chosen before jax is imported)
from flax import nnx  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
