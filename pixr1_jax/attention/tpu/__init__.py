"""Block-list attention on TPU, in Pallas: forward, backward, and forward with its directional derivative.

Kernels take head-major arrays and whole tiles of queries; `pixr1_jax.attention.kernels` makes them one differentiable
function. Off a TPU they are interpreted, which only tests want.
"""

from pixr1_jax.attention.tpu.backward import backward
from pixr1_jax.attention.tpu.common import unserved
from pixr1_jax.attention.tpu.forward import forward
from pixr1_jax.attention.tpu.tangent import tangent

__all__ = ["backward", "forward", "tangent", "unserved"]
