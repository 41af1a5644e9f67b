"""What tools/aot.py reads in machine code; the compiling itself is `make aot`."""

from __future__ import annotations

from tools.aot import cases, longest_loop

CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/               @P0 FFMA R5, R4, R6, R5 ;
        /*0030*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   EXIT ;
        /*0050*/                   BRA `(.L_x_1);
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
"""


def test_the_longest_loop_is_found() -> None:
    loop = longest_loop(CODE)
    assert [instruction.split()[0] for instruction in loop] == ["LDG.E.128", "FFMA", "BRA"]


def test_every_kernel_and_width_is_a_case() -> None:
    found = cases()
    assert len({case.name for case in found}) == len(found)
    kernels = {case.launch.kernel.__name__ for case in found}
    assert kernels >= {"_attend", "attend_packed", "_merge_parts", "_linear", "_widen", "_rope_qkv"}
    assert kernels >= {"_rope_store", "_rms_norm", "_gate", "_pack", "_largest", "_advance"}
    assert {c.launch.constants["BITS"] for c in found if c.budget} == {4, 5, 6, 8}
