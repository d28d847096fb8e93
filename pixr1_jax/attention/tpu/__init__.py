"""Block-list attention on TPU, in Pallas: forward, backward, and forward with its directional derivative.

Off a TPU the kernels are interpreted, which only tests want.
"""

from pixr1_jax.attention.backend import Backend
from pixr1_jax.attention.tpu import backward, forward, plan, tangent

BACKEND = Backend(forward.forward, backward.backward, tangent.tangent, plan.unserved)
