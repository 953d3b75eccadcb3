"""Where a step's time goes: XLA's text read, parts told apart, and the command at toy sizes."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import step_profile
from experiments.step_profile import Part

HLO = """HloModule made_up

%fused_computation (param_0: f32[10,4], param_1: f32[4,8]) -> f32[10,8] {
  %param_0 = f32[10,4]{1,0} parameter(0)
  %param_1 = f32[4,8]{1,0} parameter(1)
  ROOT %dot.1 = f32[10,8]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[10,4], w: f32[4,8]) -> f32[10,8] {
  %x = f32[10,4]{1,0} parameter(0)
  %w = f32[4,8]{1,0} parameter(1)
  %moved = f32[10,4]{1,0} add(%x, %x), metadata={op_name="jit(step)/jvp(SkipNet)/scale0_up_norm/add"}
  %product = f32[10,8]{1,0} fusion(%moved, /*index=1*/%w), kind=kCustom, calls=%fused_computation
  %mixed = f32[10,8]{1,0} negate(%product), metadata={op_name="jit(step)/jvp(SkipNet)/scale0_mix_norm/neg"}
  %back = f32[10,8]{1,0} negate(%mixed), metadata={op_name="jit(step)/transpose(jvp(SkipNet))/scale0_mix_norm/mul"}
  %gradient = f32[10,4]{1,0} dot(%back, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %between = f32[10,4]{1,0} negate(%gradient), metadata={op_name="jit(step)/transpose(jvp(SkipNet))/pad"}
  ROOT %after = f32[10,8]{1,0} negate(%mixed), metadata={op_name="jit(step)/mul"}
}
"""


def test_products_and_bytes_are_counted_once():
    program = step_profile.instructions(HLO)
    assert "dot.1" not in program
    assert program["product"].flops == program["gradient"].flops == 2 * 10 * 4 * 8
    assert program["product"].num_bytes == 4 * (10 * 8 + 10 * 4 + 4 * 8)
    assert program["product"].operands == ("moved", "w")


def test_products_without_a_name_belong_to_their_layer():
    parts = step_profile.parts_of(step_profile.instructions(HLO))
    assert parts["moved"] == "scale0_up"
    assert parts["product"] == "scale0_mix"
    assert parts["gradient"] == "scale0_mix, gradient"
    assert parts["between"] == "rest of SkipNet, gradient"
    assert parts["after"] == "loss, blur and optimiser"


def test_times_are_those_of_a_step_and_the_slowest_come_first():
    times = {"moved": 2.0, "product": 6.0, "mixed": 2.0, "unheard of": 50.0}
    parts = step_profile.profile(HLO, times, steps=2)
    assert [(part.name, part.milliseconds) for part in parts] == [("scale0_mix", 4.0), ("scale0_up", 1.0)]
    assert parts[0].flops == 640


def test_the_table_has_rates_a_sum_and_the_machines_limits():
    text = step_profile.table(
        [Part("scale0_up", 3.0, 6e9, 3e6), Part("rest", 1.0, 0.0, 1e6)], {"float32": 1e12, "bytes_per_s": 1e9}
    )
    assert "| scale0_up | 3.0 | 75 | 6 | 2000 | 3 | 1.0 |" in text
    assert "| **step** | 4.0 | 100 | 6 | 1500 | 4 | 1.0 |" in text
    assert "take 6 ms and its bytes 4 ms" in text


def test_a_compiled_program_is_read():
    matrices = jnp.ones((30, 20)), jnp.ones((20, 40))
    compiled = jax.jit(lambda a, b: jnp.tanh(a @ b).sum()).lower(*matrices).compile()
    program = step_profile.instructions(compiled.as_text())
    assert sum(instruction.flops for instruction in program.values()) == 2 * 30 * 20 * 40


@pytest.mark.slow
def test_the_command_tells_the_layers():
    command = "--preset=selfdeblur_small --channels=4 --side=64 --kernel_size=5 --steps=20 --profile"
    arguments = [sys.executable, "-m", "experiments.benchmark", *command.split()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| scale0_up |" in done.stdout
    assert "| scale0_up, gradient |" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["traced_ms"] < 3 * found["step_ms"]
