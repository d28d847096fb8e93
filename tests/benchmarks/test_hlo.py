"""Reading a compiled TPU program's text: cycles, memory, bytes; what cannot be summed is refused."""

import pytest

from pixr1_jax.benchmarks import hlo

TEXT = """HloModule jit_f

%fused (p: f32[8]) -> f32[8] {
  ROOT %inner = f32[8]{0} add(%p, %p), backend_config={"bundle_analysis_data":{"estimated_cycles":"999"}}
}

ENTRY %main (q: bf16[16,128], k: bf16[64,128]) -> bf16[16,128] {
  %q = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%k)
  %copy-done = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[64,128]{1,0}), bf16[32,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%k), slice={[0:32], [0:128]}
  %fusion.1 = (f32[16]{0:S(1)}, f32[16,64]{1,0:T(8,128)}) fusion(%q, %copy-done), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"5000"},"bundle_analysis_data":{"estimated_cycles":"120"}}
  %get-tuple-element = f32[16,64]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=1
  ROOT %kernel = bf16[16,128]{1,0:T(8,128)(2,1)} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
  "a": "text over lines"
}}, backend_config={"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"4096"}],\
"bundle_analysis_data":{"estimated_cycles": "77","flops":"0"}}
}
"""


def test_operations_of_the_entry():
    found = {operation.name: operation for operation in hlo.operations(TEXT)}
    assert list(found) == ["%copy-start", "%slice-start", "%fusion.1", "%kernel"]
    assert found["%fusion.1"].cycles == 120  # the profile's, not the window's, and not the fused computation's
    assert found["%copy-start"].cycles is None
    assert (found["%kernel"].kind, found["%kernel"].cycles, found["%kernel"].vmem) == ("pallas", 77, 4096)


def test_only_what_lies_in_hbm_counts():
    hbm = {operation.name: operation.hbm for operation in hlo.operations(TEXT)}
    query, key = 2 * 16 * 128, 2 * 64 * 128
    assert hbm["%copy-start"] == key  # from HBM to VMEM
    assert hbm["%slice-start"] == key // 2
    assert hbm["%fusion.1"] == query + 4 * 16 * 64  # one operand and one result are in VMEM
    assert hbm["%kernel"] == query + key + query  # an operand given twice is one array


@pytest.mark.parametrize("opcode", ["while", "conditional", "call"])
def test_loops_outside_a_kernel_are_refused(opcode):
    text = TEXT.replace("get-tuple-element(%fusion.1)", f"{opcode}(%fusion.1)")
    with pytest.raises(ValueError, match="straight-line"):
        hlo.operations(text)


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        hlo.operations("HloModule empty")
