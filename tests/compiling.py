"""How the tests compile: quickly, for most programs run a few times on tiny arrays."""

from __future__ import annotations

from importlib.metadata import version

# Without LLVM's optimisations, and with the emitters before MLIR's: in a third of the time. XLA
# ends the process at a flag that it does not know, and what the last two choose may go.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):
    QUICKLY += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
