"""Cycles of the attention kernels: read from programs, asked for once, or by a formula."""

from __future__ import annotations

import json
import subprocess

import pytest

from flaxbert.planning import hlo, kernel_cycles
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.kernel_cycles import Kernel, KernelCycles, by_formula, kernel_of

# As the TPU's compiler (libtpu 0.0.42) writes it, cut to what is read.
TEXT = """\
ENTRY %main (param: f32[8]) -> f32[8] {
  %attention_backward_dropout.7 = (bf16[64,128,768]{2,1,0:T(8,128)(2,1)S(1)}, bf16[64,128,768]{2,1,0:T(8,128)(2,1)S(1)}, bf16[64,128,768]{2,1,0:T(8,128)(2,1)S(1)}, f32[64,3,768]{2,1,0:T(4,128)}) custom-call(%a, %b, %c), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[64,128,768]{2,1,0}, bf16[64,128,768]{2,1,0}, bf16[64,128,768]{2,1,0}, s32[64,1,128]{2,1,0}, s32[64,1,128]{2,1,0}, u32[64,1,128]{2,1,0}, f32[64,6,2,128]{3,2,1,0}, bf16[64,128,768]{2,1,0}}, metadata={op_name="jit(train_step)/transpose(jvp(jit(_run)))/attention/pallas_call"}
  %other.1 = bf16[64,128,768]{2,1,0} custom-call(%a), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[64,128,768]{2,1,0}}
}
"""  # noqa: E501

BACKWARD = Kernel("attention_backward_dropout", 64, 128, 768, 12)


def test_a_kernel_is_read_from_a_program():
    found = [kernel_of(instruction) for instruction, _ in hlo.walk(TEXT)]
    assert found == [BACKWARD, None]


@pytest.fixture
def answers(monkeypatch):
    """answers(lines): what the compiler's process prints; returns the commands it got."""
    commands = []

    def set_to(*lines: str):
        def run(command, seconds):
            commands.append(command)
            return subprocess.CompletedProcess(command, 0, "\n".join(lines), "")

        monkeypatch.setattr(kernel_cycles.subprocesses, "run", run)
        return commands

    return set_to


def test_the_compiler_is_asked_once(answers):
    line = json.dumps({"kernel": vars(BACKWARD), "cycles": 152510})
    commands = answers(line)
    cycles = KernelCycles("v5e:2x2", CHIPS["v5e"])
    (counted,) = cycles.count({BACKWARD: 11})
    assert (counted.calls, counted.cycles, counted.by_formula) == (11, 152510, False)
    assert cycles.count({BACKWARD: 2})[0].cycles == 152510
    assert len(commands) == 1 and commands[0][-2] == "v5e:2x2"
    assert cycles.count({}) == ()


def test_a_compiler_that_ends_leaves_the_formula(answers):
    answers()
    cycles = KernelCycles("v4:2x2x1", CHIPS["v4"])
    (counted,) = cycles.count({BACKWARD: 11})
    assert counted.by_formula and counted.cycles == by_formula(BACKWARD, CHIPS["v4"])


@pytest.mark.parametrize(
    ("chip", "kernel", "compiled"),
    [  # what libtpu 0.0.42 counts of kernels alone
        ("v5e", ("attention_forward_dropout", 64, 128, 768, 12), 137112),
        ("v5e", ("attention_backward_dropout", 64, 128, 768, 12), 152510),
        ("v5e", ("attention_forward_dropout", 16, 512, 768, 12), 381254),
        ("v5e", ("attention_backward_dropout", 16, 512, 768, 12), 579631),
        ("v5e", ("attention_forward_dropout", 64, 128, 1024, 16), 166697),
        ("v6e", ("attention_backward_dropout", 64, 128, 768, 12), 133804),
    ],
)
def test_the_formula_is_within_a_third(chip, kernel, compiled):
    assert by_formula(Kernel(*kernel), CHIPS[chip]) == pytest.approx(compiled, rel=0.34)
