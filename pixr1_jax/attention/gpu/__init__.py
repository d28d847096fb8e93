"""Block-list attention on NVIDIA GPUs (Hopper), in Pallas through Triton."""

from pixr1_jax.attention.gpu.backward import backward as backward
from pixr1_jax.attention.gpu.forward import forward as forward
from pixr1_jax.attention.gpu.tangent import tangent as tangent
