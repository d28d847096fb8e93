"""Block-list attention on NVIDIA GPUs (Hopper), in Pallas through Triton: forward, backward, and forward with tangent.

Off a GPU the kernels are interpreted, which only tests want.
"""

from pixr1_jax.attention.backend import Backend, on_device
from pixr1_jax.attention.gpu.backward import backward as backward
from pixr1_jax.attention.gpu.forward import forward as forward
from pixr1_jax.attention.gpu.tangent import tangent as tangent


def _forward(q, k, v, lists, key_valid, tail, **numbers):
    run = lambda *arrays, interpret: forward(*arrays, **numbers, interpret=interpret)
    return on_device("cuda", run, q, k, v, lists, key_valid, tail)


def _backward(q, k, v, lists, key_valid, tail, out, lse, d_out, **numbers):
    run = lambda *arrays, interpret: backward(*arrays, **numbers, interpret=interpret)
    return on_device("cuda", run, q, k, v, lists, key_valid, tail, out, lse, d_out)


def _tangent(q, k, v, dq, dk, dv, lists, key_valid, tail, d_tail, still, **numbers):
    run = lambda *arrays, interpret: tangent(*arrays, still=still, **numbers, interpret=interpret)
    return on_device("cuda", run, q, k, v, dq, dk, dv, lists, key_valid, tail, d_tail)


BACKEND = Backend(_forward, _backward, _tangent, unserved=lambda block, tile, compiled: "")
