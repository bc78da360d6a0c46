"""Makes a command tell on standard error which phase it enters; Python imports this file by itself
where its folder is in PYTHONPATH, so the command line is the user's own.

"phase: NAME" is a line; FLAXBERT_TEST_STAY=NAME:SECONDS:HOW[:PROCESS] makes the first such phase
last longer, in Python ("python") or inside one call of C code that lets other threads run ("c"), in
all processes of a run or in one. FLAXBERT_TEST_WRONG=COLLECTIVE makes this one add up wrongly.
"""

from __future__ import annotations

import functools
import os

from tests.soak.importing import after_import

# module: {attribute: phase}
PHASES = {
    "flaxbert.run.inputs": {"read_inputs": "preparing"},
    "flaxbert.run.compile": {"compile_update": "compiling"},
    "flaxbert.data.batches": {"train_batch": "training"},
    "flaxbert.loop.evaluation": {"evaluate": "evaluating"},
    "flaxbert.run.results": {
        "Exporter.__call__": "exporting",
        "write_results": "writing results",
    },
    "flaxbert.storage.checkpoint": {
        "Checkpoints.save": "saving",
        "Checkpoints.restore": "resuming",
    },
}

_stay = os.environ.get("FLAXBERT_TEST_STAY", "").split(":")


def _enter(phase: str, step: int | None) -> None:
    if phase == "training" and step == 0:
        phase = "first update"
    told = f"phase: {phase}" + (f" {step}" if step is not None else "")
    os.write(2, f"{told}\n".encode())
    if _stay[0] == phase:
        _, seconds, how, *processes = _stay
        _stay[0] = ""
        if processes and processes != [os.environ.get("JAX_PROCESS_ID", "0")]:
            return
        if how == "c":
            import hashlib

            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
        else:
            import time

            time.sleep(float(seconds))


def _break(collective: str) -> None:
    import jax

    real = getattr(jax.lax, collective)
    setattr(jax.lax, collective, lambda *arguments, **named: real(*arguments, **named) + 1)


def _fail_saves(module) -> None:
    """FLAXBERT_TEST_SAVE=PROCESS:TIMES: that one's disk fails, in Orbax's thread."""
    process, times = os.environ["FLAXBERT_TEST_SAVE"].split(":")
    if process != os.environ.get("JAX_PROCESS_ID", "0"):
        return
    left = [int(times)]
    real = module.Checkpoints._meet

    def meet(self, **named):
        if left[0]:
            left[0] -= 1
            raise OSError(28, os.strerror(28), "a file")
        real(self, **named)

    module.Checkpoints._meet = meet


def _change_weights(module) -> None:
    """FLAXBERT_TEST_WEIGHTS=PROCESS: that one reads other numbers."""
    if os.environ["FLAXBERT_TEST_WEIGHTS"] != os.environ.get("JAX_PROCESS_ID", "0"):
        return
    real = module.Start.load_params

    def load_params(self, bert):
        params = real(self, bert)
        params["classifier"]["bias"] = params["classifier"]["bias"] + 1
        return params

    module.Start.load_params = load_params


def _told(function, phase: str):
    def entered(*arguments, **named):
        _enter(phase, named.get("step") if phase == "training" else None)
        return function(*arguments, **named)

    return entered


def _change(name: str, module) -> None:
    if name == "flaxbert.run.inputs" and "FLAXBERT_TEST_WRONG" in os.environ:
        _break(os.environ["FLAXBERT_TEST_WRONG"])
    if name == "flaxbert.run.inputs" and "FLAXBERT_TEST_WEIGHTS" in os.environ:
        _change_weights(module)
    if name == "flaxbert.storage.checkpoint" and "FLAXBERT_TEST_SAVE" in os.environ:
        _fail_saves(module)
    for attribute, phase in PHASES[name].items():
        *owner, last = attribute.split(".")
        holder = getattr(module, owner[0]) if owner else module
        setattr(holder, last, _told(getattr(holder, last), phase))


after_import({name: functools.partial(_change, name) for name in PHASES})
