"""Programs are read as XLA writes them: loops count, fusions once, groups in all forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from flaxbert.planning import hlo
from flaxbert.planning.estimate import _traffic

# What the TPU's compiler (libtpu 0.0.42) writes of a training step for v5e:2x2, fsdp 2, model 2, in
# two micro-batches, cut to a few instructions and attributes.
TPU = """\
HloModule jit_train_step, is_scheduled=true

%fused_computation.1 (param_0.1: f32[128]) -> f32[128] {
  ROOT %negate.1 = f32[128]{0:T(128)} negate(%param_0.1), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%fused_computation.533 (param_0.2007: bf16[64,64]) -> (bf16[64,64], bf16[128,64]) {
  %all-gather.146 = bf16[128,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.2007), channel_id=8, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="1"}
}

%fused_computation.534 (param_0.2011: bf16[64,64]) -> bf16[128,64] {
  %all-gather.148 = bf16[128,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.2011), channel_id=8, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="1"}
}

%all-reduce-scatter.3.clone.1 (input_0.2: f32[128,64], input_1.2: f32[128,64]) -> (f32[64,64], f32[64,64]) {
  %all-reduce.169 = (f32[128,64]{1,0:T(8,128)}, f32[128,64]{1,0:T(8,128)}) all-reduce(%input_0.2, %input_1.2), channel_id=1, replica_groups={{0,2},{1,3}}, use_global_device_ids=true, to_apply=%add.13.clone
}

%body (wide.param: (s32[], f32[128])) -> (s32[], f32[128]) {
  %async-collective-start.1 = (bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, bf16[128,64]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%get-tuple-element.3076), kind=kCustom, calls=%fused_computation.533
  %fusion.530 = bf16[128,64]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.3212), kind=kCustom, calls=%fused_computation.534, metadata={op_name="jit(train_step)/while/body/closed_call/jvp(jit(_run))/attention/dot_general" stack_frame_id=500}, backend_config={"window_config":{"estimated_cycles":"40"}}
  %fusion.515 = (f32[64,64]{1,0:T(8,128)S(1)}, f32[64,64]{1,0:T(8,128)S(1)}) fusion(%fusion.512, %fusion.513), kind=kCustom, calls=%all-reduce-scatter.3.clone.1, metadata={op_name="jit(train_step)/while/body/closed_call/transpose(jvp(jit(_run)))/attention/TI,TO->IO/dot_general" stack_frame_id=500}
  %collective-permute.1 = bf16[2,2,64]{2,0,1:T(2,128)(2,1)S(1)} collective-permute(%fusion.3), channel_id=46, source_target_pairs={{0,0},{1,2},{2,1},{3,3}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[128]{0:T(128)}) tuple(%a, %b)
}

%condition (wide.param: (s32[], f32[128])) -> pred[] {
  ROOT %less = pred[]{:T(512)} compare(%a, %b), direction=LT
}

ENTRY %main.270_spmd (param: f32[128]) -> f32[128] {
  %while.69 = (s32[]{:T(128)}, f32[128]{0:T(128)S(1)}, /*index=5*/f32[512,64]{1,0:T(8,128)S(1)}) while(%tuple.69), condition=%condition, body=%body, metadata={op_name="jit(train_step)/while" stack_frame_id=46}
  %all-reduce.112 = (f32[30,2]{1,0:T(8,128)}, /*index=1*/bf16[5]{0:T(1024)S(1)}) all-reduce(%x, %y), channel_id=112, replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0','axis_1'}, use_global_device_ids=true, to_apply=%add
  ROOT %fusion.3 = f32[128]{0:T(128)} fusion(%param), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(train_step)/optimizer/jit(_adamw)/add"}, backend_config={"window_config":{"estimated_cycles":"5"}}
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_runs():
    for trips in (1, 2, 8):
        assert sum(i.cycles * times for i, times in hlo.walk(TPU, trips)) == 40 * trips + 5
    written = TPU.replace("body=%body", 'body=%body, x={"known_trip_count":{"n":"3"}}')
    assert sum(i.cycles * times for i, times in hlo.walk(written, 8)) == 40 * 3 + 5


def test_what_is_fused_is_no_instruction_of_its_own():
    names = {instruction.name for instruction, _ in hlo.walk(TPU)}
    assert "fusion.3" in names and not names & {"negate.1", "less", "while.69"}


def test_exchanges_are_found_wherever_they_stand():
    found = [(i, times) for i, times in hlo.walk(TPU, 2) if i.kind in hlo.COLLECTIVES]
    assert [(i.kind, i.size, times, i.groups) for i, times in found] == [
        # In what starts it and in what goes on beside it, yet one.
        ("all-gather", 128 * 64 * 2, 2, ((0, 2), (1, 3))),
        # Written as an all-reduce of which each device keeps a part.
        ("reduce-scatter", 2 * 64 * 64 * 4, 2, ((0, 2), (1, 3))),
        ("collective-permute", 2 * 2 * 64 * 2, 2, ((0, 0), (1, 2), (2, 1), (3, 3))),
        ("all-reduce", 30 * 2 * 4 + 5 * 2, 1, ((0, 2, 1, 3),)),
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3}}", ((0, 1, 2, 3),)),
        ("replica_groups={}", ()),
        ("replica_groups=[1,4]<=[4]", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=1] {'axis_0'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", None),
        ("replica_groups=something", None),
    ],
)
def test_groups_are_read_in_each_form(text, groups):
    line = f"  %x = f32[2]{{0}} all-reduce(%a), {text}, to_apply=%add"
    program = f"ENTRY %main (p: f32[2]) -> f32[2] {{\n{line}\n}}\n"
    ((instruction, _),) = hlo.walk(program)
    assert instruction.groups == groups


@pytest.mark.parametrize(
    ("shape", "opcode", "size"),
    [
        ("(f32[2]{0}, f32[4]{0})", "all-gather-start", 16),
        ("((f32[2]{0}, s8[6]{0}), (f32[4]{0}, s8[12]{0}))", "all-gather-start", 28),
        ("(f32[8]{0}, f32[2]{0}, u32[], u32[])", "collective-permute-start", 8),
        ("(f32[8]{0}, bf16[8]{0})", "all-reduce-start", 48),
        ("s4[3]{0}", "all-gather", 2),
        ("pred[]", "all-reduce", 1),
    ],
)
def test_the_size_is_that_of_the_results(shape, opcode, size):
    program = f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  %x = {shape} {opcode}(%a)\n}}\n"
    ((instruction, _),) = hlo.walk(program)
    assert (instruction.kind, instruction.size) == (opcode.removesuffix("-start"), size)


def test_a_real_program_is_read():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ x), x)

    text = jax.jit(loop).lower(jnp.zeros((16, 16))).compile().as_text()
    computations, entry = hlo.parse(text)
    assert entry in computations
    products = [times for i, times in hlo.walk(text) if "dot_general" in i.path]
    assert products and set(products) == {5}


def test_what_lies_on_the_chip_is_not_in_main_memory():
    found = {instruction.name: instruction for instruction, _ in hlo.walk(TPU)}
    assert found["all-reduce.112"].hbm == 4 * 30 * 2  # not the second result
    assert found["fusion.515"].hbm == 0
    assert found["fusion.515"].operands == ("fusion.512", "fusion.513")
    assert found["async-collective-start.1"].hbm == 0
    assert found["fusion.3"].hbm == 512


def test_traffic_is_counted_once():
    def read(line):
        ((_, instructions),) = hlo.parse("ENTRY %main (p: f32[4]) -> f32[4] {\n" + line)[0].items()
        return instructions[0]

    hbm = {"a": 1000, "b": 0, "c": 24}
    fused = read("  %fusion.1 = f32[8]{0:T(128)} fusion(%a, %b, %c), kind=kLoop, calls=%x")
    assert _traffic(fused, hbm) == 1000 + 24 + 32
    copied = read(
        "  %copy-start.1 = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)"
    )
    assert _traffic(copied, hbm) == 32
    gathered = read(
        "  %all-gather-start.1 = (f32[2]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%a), "
        "replica_groups={{0,1,2,3}}"
    )
    assert _traffic(gathered, hbm) == 8 + 32  # not its operand once more
    for line in (
        "  %copy-done.1 = f32[8]{0:T(128)} copy-done(%a)",
        "  %x = f32[8]{0} bitcast(%a)",
        '  %y = f32[8]{0} custom-call(%a), custom_call_target="ConcatBitcast"',
        "  %p = f32[8]{0} parameter(0)",
    ):
        assert _traffic(read(line), hbm) == 0


def test_what_a_fused_exchange_moves_is_the_outer_ones():
    hbm = {"fusion.512": 128 * 64 * 4, "fusion.513": 128 * 64 * 4}
    moved = {i.name: _traffic(i, hbm) for i, _ in hlo.walk(TPU)}
    assert moved["fusion.515"] == 2 * 128 * 64 * 4
    assert moved["all-reduce.169"] == moved["all-gather.146"] == 0


def test_what_slices_exchange_is_received_by_their_hosts():
    line = (
        "  %recv.1 = (f32[256,1024]{1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), "
        'channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_target="'
        '{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}\n'
    )
    sent = line.replace("recv", "send")
    text = "ENTRY %main (p: f32[4]) -> f32[4] {\n" + line + sent
    found = [(i.between_slices, i.size) for i, _ in hlo.walk(text)]
    assert found == [("all-gather", 4 * 256 * 1024), ("", 4 * 256 * 1024 + 4)]
