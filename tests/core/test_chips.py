"""Peaks are found by the names that JAX gives to devices."""

import jax
import pytest

from pixr1_jax.core.chips import CHIPS, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("TPU v99", None),
    ],
)
def test_a_device_kind_has_its_peak_or_none(kind, peak):
    assert peak_flops(kind) == peak


def test_a_cpu_has_no_peak_and_no_kind_names_two_chips():
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
