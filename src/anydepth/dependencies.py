"""Checks of undocumented behaviour of other libraries that anydepth relies on.

A new release may change what is not documented. Each such protocol is a function here that checks the installed
library, with the private names that the source uses. `require` is called where a library is first used, so that a
change is an error that names the library and the protocol, and not a wrong answer. A test fails on a private name of
another library that no protocol lists.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anydepth.errors import DependencyError

TESTED = {
    "torch": "2.15",
    "transformers": "5.24",
    "accelerate": "1.15",
    "peft": "0.21",
    "onnx": "1.23",
    "onnxscript": "0.7",
    "onnxruntime": "1.32",
}
"""The newest releases on which all tests passed. The package's metadata allow these and no later ones."""

CACHE_NAMES = ("cache", "past_key_values")
"""The argument of transformers' models that takes the K/V cache: from 5.24, and before."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Undocumented behaviour of a library (its name on PyPI) that anydepth relies on, and the check that it `holds`.

    `does` says what it does, as a verb with its object; `names` are the private names that the source uses.
    """

    library: str
    does: str
    names: tuple[str, ...] = ()
    holds: Callable[[], bool]


PROTOCOLS: list[Protocol] = []
"""All protocols, by `protocol`."""


def protocol(library: str, does: str, *names: str) -> Callable[[Callable[[], bool]], Callable[[], bool]]:
    """Decorator: register a check as a `Protocol`."""

    def register(holds: Callable[[], bool]) -> Callable[[], bool]:
        PROTOCOLS.append(Protocol(library=library, does=does, names=names, holds=holds))
        return holds

    return register


def require(library: str) -> None:
    """Raise a `DependencyError` that names the first protocol which the installed version of a library does not hold.

    It is checked once in a process; a library that is not installed passes.

    Example:
        >>> require("transformers")
    """
    if broken := _broken(library):
        raise DependencyError(
            f"{library} {version(library)} {broken} differently; anydepth was tested up to {TESTED[library]}: "
            f"pip install '{library}<{_above(TESTED[library])}', or a newer anydepth"
        )


@cache
def _broken(library: str) -> str | None:
    try:
        version(library)
    except PackageNotFoundError:
        return None
    return next((item.does for item in PROTOCOLS if item.library == library and not _holds(item)), None)


def _holds(protocol: Protocol) -> bool:
    """Whether a protocol holds, checked outside the caller's torch modes and without changing its random state."""
    import torch

    try:
        with torch.inference_mode(False), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return protocol.holds()
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def _above(release: str) -> str:
    """The first minor release after one."""
    major, minor = release.split(".")
    return f"{major}.{int(minor) + 1}"


@cache
def cache_name() -> str:
    """The name of the K/V cache in the installed transformers; a `DependencyError` if it is none of `CACHE_NAMES`."""
    require("transformers")
    name = _cache_argument()
    assert name is not None  # `_hands_on_a_cache` holds
    return name


def _cache_argument() -> str | None:
    from transformers import GenerationMixin

    parameters = _parameters(GenerationMixin.prepare_inputs_for_generation)
    return next((name for name in CACHE_NAMES if name in parameters), None)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _takes(owner: Any, arguments: Mapping[str, set[str]]) -> bool:
    """Whether a class has methods of these names that take these arguments."""
    return all(names <= _parameters(getattr(owner, method)) for method, names in arguments.items())


def _sets(function: Any, *names: str) -> bool:
    """Whether the code of a function contains these attributes and constants."""
    code = inspect.unwrap(function).__code__
    return set(names) <= {*code.co_names, *code.co_consts}


# --- transformers: generating -----------------------------------------------------------------------------------------


@protocol("transformers", "hands on the keys and values of a generation")
def _hands_on_a_cache() -> bool:
    from dataclasses import fields

    from transformers import GenerationMixin
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    name = _cache_argument()
    return (
        name in {field.name for field in fields(GenerateDecoderOnlyOutput)}
        and name in GenerationMixin._prepare_cache_for_generation.__code__.co_consts
    )


@protocol(
    "transformers",
    "prepares and runs its own loops of generation",
    *("_sample", "_beam_search", "_pad_token_tensor", "_mask_length", "_is_user_defined"),
    *("_supports_default_dynamic_cache", "_supports_logits_to_keep"),
)
def _generates() -> bool:
    from transformers import GenerationMixin

    loop = {"input_ids", "logits_processor", "stopping_criteria", "generation_config"}
    arguments: dict[str, set[str]] = {
        "generate": {"custom_generate"},
        "prepare_inputs_for_generation": {"input_ids", "next_sequence_length", "attention_mask", "is_first_iteration"},
        "_sample": loop,
        "_beam_search": loop,
        "_supports_default_dynamic_cache": set(),
        "_supports_logits_to_keep": set(),
    }
    return (
        _takes(GenerationMixin, arguments)
        and _sets(GenerationMixin._prepare_special_tokens, "_pad_token_tensor")
        and _sets(GenerationMixin.generate, "_mask_length")
        and _sets(GenerationMixin._prepare_cache_for_generation, "_is_user_defined")
    )


@protocol("transformers", "keeps keys and values in the layers of a cache")
def _keeps_layers() -> bool:
    import torch
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    layer = cache.layers[0]
    return (
        type(layer) is DynamicLayer
        and layer.keys.shape == layer.values.shape == (1, 1, 3, 2)
        and layer.is_initialized is True
        and cache.get_seq_length() == layer.get_seq_length() == 3
        and not cache.offloading
        and {"query_length", "layer_idx"} <= _parameters(Cache.get_mask_sizes)
        and {"key_states", "value_states", "layer_idx"} <= _parameters(Cache.update)
        and len(Cache(layers=cache.layers).layers) == 1
        and callable(cache.batch_select_indices)
    )


# --- transformers: training and loading -------------------------------------------------------------------------------


@protocol(
    "transformers",
    "trains",
    *("_save_checkpoint", "_save_rng_state", "_save", "_load_from_checkpoint", "_load_best_model"),
    *("_get_output_dir", "_prepare_inputs"),
)
def _trains() -> bool:
    from transformers import Trainer

    arguments: dict[str, set[str]] = {
        "compute_loss": {"model", "inputs", "return_outputs", "num_items_in_batch"},
        "log": {"logs", "start_time"},
        "evaluation_loop": {"dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"},
        "prediction_step": {"model", "inputs", "prediction_loss_only", "ignore_keys"},
        "call_model_init": {"trial"},
        "train": {"resume_from_checkpoint", "trial", "ignore_keys_for_eval"},
        "_save_checkpoint": {"model", "trial"},
        "_save_rng_state": {"output_dir"},
        "_save": {"output_dir", "state_dict"},
        "_load_from_checkpoint": {"resume_from_checkpoint", "model"},
        "_load_best_model": set(),
        "_get_output_dir": {"trial"},
        "_prepare_inputs": {"inputs"},
        "get_tp_size": set(),
    }
    return _takes(Trainer, arguments) and _sets(
        Trainer.__init__, "model_accepts_loss_kwargs", "label_smoother", "compute_loss_func"
    )


@protocol("transformers", "saves the parts of a checkpoint in their order")
def _saves_in_an_order() -> bool:
    """The trainer state is saved last, after the random states: a checkpoint that has it is complete."""
    from transformers import Trainer

    calls = Trainer._save_checkpoint.__code__.co_names
    return bool(calls.index("_save_rng_state") < calls.index("save_to_json"))


@protocol("transformers", "marks models that have adapters", "_hf_peft_config_loaded")
def _marks_adapted_models() -> bool:
    from transformers import PreTrainedModel

    return bool(PreTrainedModel._hf_peft_config_loaded is False)


@protocol("transformers", "remembers the settings of a config", "_name_or_path", "_attn_implementation")
def _remembers_settings() -> bool:
    from transformers import PreTrainedConfig

    config = PreTrainedConfig(name_or_path="here", attn_implementation="eager")
    return bool(config._name_or_path == "here" and config._attn_implementation == "eager")


# --- torch ------------------------------------------------------------------------------------------------------------


@protocol("torch", "keeps the children of a module", "_modules", "_buffers", "_compiled_call_impl")
def _keeps_modules() -> bool:
    from torch import nn

    inner = nn.Linear(1, 1)
    outer = nn.Sequential(inner)
    return (
        outer._modules == {"0": inner}
        and nn.BatchNorm1d(1)._buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}
        and inner._compiled_call_impl is None
        and isinstance(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 2, batch_first=True), 1).use_nested_tensor, bool
        )
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@protocol("torch", "keeps the hooks of a module", *_HOOKS)
def _keeps_hooks() -> bool:
    from torch import nn

    module = nn.Identity()
    module.register_forward_hook(print)
    module.register_forward_pre_hook(print)
    module.register_full_backward_hook(print)
    module.register_full_backward_pre_hook(print)
    return all(len(getattr(module, name)) == 1 for name in _HOOKS)


@protocol("torch", "counts the writes to a tensor", "_version")
def _counts_writes() -> bool:
    import torch

    tensor = torch.zeros(1)
    before = tensor._version
    tensor += 1
    return tensor._version == before + 1


@protocol("torch", "wraps what it compiles", "_orig_mod")
def _wraps_what_it_compiles() -> bool:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # loaded only by a compilation: importing it takes seconds
    return compiler is None or "_orig_mod" in compiler.OptimizedModule.__init__.__code__.co_names


@protocol("torch", "flattens nested values", "_pytree")
def _flattens_trees() -> bool:
    from torch.utils import _pytree

    leaves, spec = _pytree.tree_flatten({"a": [1, 2]})
    return leaves == [1, 2] and _pytree.tree_unflatten(leaves, spec) == {"a": [1, 2]}


# --- accelerate, peft, onnx -------------------------------------------------------------------------------------------


@protocol("accelerate", "keeps the weights that it has put away", "_hf_hook")
def _keeps_what_is_put_away() -> bool:
    import torch
    from accelerate import cpu_offload
    from torch import nn

    layer: Any = nn.Linear(1, 1)
    weight = layer.weight.detach().clone()
    cpu_offload(nn.Sequential(layer), execution_device=torch.device("cpu"))
    return torch.equal(layer._hf_hook.weights_map["weight"], weight)


@protocol("peft", "keeps what an adapter adapts")
def _adapts_beside() -> bool:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    adapted = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"], r=1))
    return (
        isinstance(adapted.base_model.model[0].base_layer, nn.Linear)
        and adapted.active_peft_config.is_prompt_learning is False
        and "default" in adapted.peft_config
    )


@protocol("torch", "exports to ONNX")
def _exports() -> bool:
    import torch

    return {"dynamo", "dynamic_shapes", "input_names", "output_names"} <= _parameters(torch.onnx.export)
