"""Any other optimizer of optax that needs only gradients: `optim.from_optax.function=radam`.

Learning rate, clipping, skipped updates and weight decay are those of every optimizer here: decay
is decoupled, multiplied by the learning rate, and not applied to biases and LayerNorms.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

import jax
import optax

from flaxbert.errors import ConfigError, first_line
from flaxbert.optim.shared.decay import decay_mask


@dataclasses.dataclass(frozen=True)
class Options:
    function: str = ""  # of optax: adabelief, adagrad, nadam, radam, yogi, ...
    arguments: str = ""  # of it, without rate and decay: "b1=0.95, nesterov=True"


# Of a model on which arguments are tried
_SHAPES = {"kernel": jax.ShapeDtypeStruct((4, 4), "float32")}


def make(
    options: Options, learning_rate: Any, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    """Raises ConfigError: optax has no such optimizer, or it takes no such arguments."""
    function: Any = getattr(optax, options.function, None)
    taken = inspect.signature(function).parameters if callable(function) else {}
    is_part = options.function.startswith(("_", "scale_by_"))
    # The step sizes of rprop begin with the first rate, which is 0 in a warm-up, and ignore others.
    needs_more = "linesearch" in taken or options.function == "rprop"
    if is_part or needs_more or "learning_rate" not in taken:
        raise ConfigError(
            "config.optim.from_optax.function: expected an optimizer of optax that takes a "
            f"learning rate, such as radam, got {options.function!r}."
        )
    arguments = _parsed(options.arguments)
    for name in arguments:
        if name not in taken or name in ("learning_rate", "weight_decay", "mask"):
            raise ConfigError(
                f"config.optim.from_optax.arguments: optax.{options.function} takes "
                f"{', '.join(n for n in taken if n != 'learning_rate')}, got {name!r}. The rate "
                "and weight decay are config.optim.learning_rate and config.optim.weight_decay."
            )
    if "weight_decay" in taken:
        arguments["weight_decay"] = 0.0  # added below, in the same way for all
    try:
        transformation: Any = function(learning_rate, **arguments)
        jax.eval_shape(lambda p: transformation.update(p, transformation.init(p), p), _SHAPES)
    except Exception as error:  # whatever optax raises for values that it does not expect
        raise ConfigError(
            f"config.optim.from_optax: optax.{options.function}: {first_line(error)}"
        ) from error
    decay = optax.add_decayed_weights(-weight_decay * learning_rate, decay_mask)
    return optax.chain(transformation, decay)


def _parsed(text: str) -> dict[str, Any]:
    """Returns keyword arguments whose values are literals."""
    try:
        call: Any = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not name=value, ...")
        return {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"config.optim.from_optax.arguments: expected 'name=value, ...', got {text!r}."
        ) from error
