"""Methods: which parameters are trained. One file each, and these files are the registry.

A file's `make(options, bert)` returns its `Method`; its options are a dataclass `Options` in the
same file (flaxbert/registry.py). A training state has two parts: "params" are trained, have
optimizer state and are saved with every checkpoint; "frozen" are saved once. `params_of` merges
them.
"""

from __future__ import annotations

from typing import Any

from flaxbert.config import Method as MethodConfig
from flaxbert.errors import ConfigError
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.binding import Params
from flaxbert.registry import member, options_for


class Method:
    """The contract; the base class trains every parameter."""

    def is_trained(self, path: str) -> bool:
        """Whether a parameter is trained; its path is like "bert/pooler/dense/kernel"."""
        return True


def method_for(section: MethodConfig, bert: BertConfig) -> Method:
    """Returns the method that a config names, for a model.

    Raises:
      ConfigError: its options do not fit the model, or each other.
    """
    module = member("methods", section.name)
    return module.make(options_for(module, section), bert)


def split(params: Params, method: Method) -> tuple[Params, Params]:
    """Returns the parameters that a method trains, and the frozen ones.

    Raises:
      ConfigError: no parameter is trained.
    """
    trained, frozen = _split(params, method, "")
    if not trained:
        raise ConfigError("config.method: no parameter is trained.")
    return trained, frozen


def params_of(state: dict[str, Any]) -> Params:
    """Returns the whole parameters of a training state."""
    return merged(state["params"], state.get("frozen", {}))


def merged(trained: Any, frozen: Any) -> Any:
    """Merges the two results of `split`."""
    if not isinstance(trained, dict):
        return trained
    both = {name: merged(trained[name], frozen[name]) for name in trained if name in frozen}
    return {**trained, **frozen, **both}


def _split(tree: Params, method: Method, prefix: str) -> tuple[Params, Params]:
    trained: Params = {}
    frozen: Params = {}
    for name, node in tree.items():
        if not isinstance(node, dict):
            (trained if method.is_trained(prefix + name) else frozen)[name] = node
            continue
        below = _split(node, method, f"{prefix}{name}/")
        trained |= {name: below[0]} if below[0] else {}
        frozen |= {name: below[1]} if below[1] else {}
    return trained, frozen
