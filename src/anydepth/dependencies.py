"""Everything undocumented that anydepth relies on in other libraries, each with a check that the installed one has it.

A new release of a library may change what it never promised. Each such protocol stands here by name: what it is, the
private names it covers, and how to see whether it still holds. `require` is called where a protocol is first used, so
that a change is an error that names the library and the protocol, and not a wrong answer or a riddle somewhere else. A
private name of another library that no protocol covers fails a test.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anydepth.errors import DependencyError

TESTED = {
    "torch": "2.15",
    "transformers": "5.24",
    "peft": "0.21",
    "onnx": "1.23",
    "onnxscript": "0.7",
    "onnxruntime": "1.32",
}
"""The newest releases on which all tests passed. The package's metadata allow these and no later ones."""

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the keys and values that a generation hands on: from 5.24, and before."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One undocumented thing that anydepth relies on.

    Attributes:
        library: whose it is, as pip knows it.
        does: what the library does, as a verb with its object.
        names: the private names that the source uses by it.
        holds: whether the installed library does it as anydepth expects.
    """

    library: str
    does: str
    names: tuple[str, ...] = ()
    holds: Callable[[], bool]


def require(library: str) -> None:
    """Raise an error unless every protocol of a library holds in the installed version; checked once in a process.

    Args:
        library: as pip knows it. One that is not installed has nothing that could differ.

    Raises:
        DependencyError: a protocol changed; the message names it.

    Example:
        >>> require("transformers")
    """
    broken = _broken(library)
    if broken:
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
    return next((one.does for one in PROTOCOLS if one.library == library and not _holds(one)), None)


def _holds(protocol: Protocol) -> bool:
    """Whether a protocol holds; what is not there at all does not.

    It is the same whoever asks, in whatever mode of torch's, and nothing that is drawn for it counts as drawn.
    """
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
    """What the installed transformers calls the keys and values that a generation hands on.

    Raises:
        DependencyError: it is called neither of the names known.
    """
    require("transformers")
    return _cache_name()


def _cache_name() -> str:
    from transformers import GenerationMixin

    taken = _parameters(GenerationMixin.prepare_inputs_for_generation)
    return next(name for name in CACHE_NAMES if name in taken)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _sets(function: Any, *names: str) -> bool:
    """Whether the code of a function speaks of these attributes."""
    code = inspect.unwrap(function).__code__
    return set(names) <= {*code.co_names, *code.co_consts}


# --- transformers: generating -----------------------------------------------------------------------------------------


def _hands_on_a_cache() -> bool:
    from dataclasses import fields

    from transformers import GenerationMixin
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    name = next((one for one in CACHE_NAMES if one in _parameters(GenerationMixin.prepare_inputs_for_generation)), None)
    return (
        name in {field.name for field in fields(GenerateDecoderOnlyOutput)}
        and name in GenerationMixin._prepare_cache_for_generation.__code__.co_consts
    )


def _prepares_inputs() -> bool:
    from transformers import GenerationMixin

    taken = _parameters(GenerationMixin.prepare_inputs_for_generation)
    return {"input_ids", "next_sequence_length", "attention_mask", "is_first_iteration"} <= taken


def _calls_another_loop() -> bool:
    from transformers import GenerationMixin

    given = {"input_ids", "logits_processor", "stopping_criteria", "generation_config"}
    loops = (GenerationMixin._sample, GenerationMixin._beam_search)
    return "custom_generate" in _parameters(GenerationMixin.generate) and all(
        given <= _parameters(loop) for loop in loops
    )


def _prepares_the_config() -> bool:
    from transformers import GenerationMixin

    return _sets(GenerationMixin._prepare_special_tokens, "_pad_token_tensor") and _sets(
        GenerationMixin.generate, "_mask_length"
    )


def _tells_whose_cache() -> bool:
    from transformers import GenerationMixin

    return _sets(GenerationMixin._prepare_cache_for_generation, "_is_user_defined")


def _tells_what_it_supports() -> bool:
    from transformers import GenerationMixin

    both = (GenerationMixin._supports_default_dynamic_cache, GenerationMixin._supports_logits_to_keep)
    return all(callable(one) for one in both)


def _keeps_layers() -> bool:
    import torch
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    kept = DynamicCache()
    kept.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    layer = kept.layers[0]
    return (
        type(layer) is DynamicLayer
        and layer.keys.shape == layer.values.shape == (1, 1, 3, 2)
        and layer.is_initialized is True
        and kept.get_seq_length() == layer.get_seq_length() == 3
        and not kept.offloading
        and {"query_length", "layer_idx"} <= _parameters(Cache.get_mask_sizes)
        and {"key_states", "value_states", "layer_idx"} <= _parameters(Cache.update)
        and len(Cache(layers=kept.layers).layers) == 1
        and callable(kept.batch_select_indices)
    )


# --- transformers: training and loading -------------------------------------------------------------------------------


def _trains() -> bool:
    from transformers import Trainer

    given = {
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
        "_load_best_model": set[str](),
        "_get_output_dir": {"trial"},
        "_prepare_inputs": {"inputs"},
        "get_tp_size": set[str](),
    }
    return all(names <= _parameters(getattr(Trainer, method)) for method, names in given.items()) and _sets(
        Trainer.__init__, "model_accepts_loss_kwargs", "label_smoother", "compute_loss_func"
    )


def _saves_in_an_order() -> bool:
    """The state last, and the random numbers of each process before it: so a checkpoint with its state is whole."""
    from transformers import Trainer

    called = Trainer._save_checkpoint.__code__.co_names
    return bool(called.index("_save_rng_state") < called.index("save_to_json"))


def _marks_adapted_models() -> bool:
    from transformers import PreTrainedModel

    return bool(PreTrainedModel._hf_peft_config_loaded is False)


def _remembers_the_name() -> bool:
    from transformers import PreTrainedConfig

    return bool(PreTrainedConfig(name_or_path="here")._name_or_path == "here")


def _remembers_the_attention() -> bool:
    from transformers import PreTrainedConfig

    return bool(PreTrainedConfig(attn_implementation="eager")._attn_implementation == "eager")


# --- torch ------------------------------------------------------------------------------------------------------------


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


def _keeps_hooks() -> bool:
    from torch import nn

    module = nn.Identity()
    module.register_forward_hook(print)
    module.register_forward_pre_hook(print)
    module.register_full_backward_hook(print)
    module.register_full_backward_pre_hook(print)
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(len(getattr(module, name)) == 1 for name in names)


def _counts_writes() -> bool:
    import torch

    tensor = torch.zeros(1)
    before = tensor._version
    tensor += 1
    return tensor._version == before + 1


def _wraps_what_it_compiles() -> bool:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # only who compiles loads it, and it takes seconds
    return compiler is None or "_orig_mod" in compiler.OptimizedModule.__init__.__code__.co_names


def _flattens_trees() -> bool:
    from torch.utils import _pytree

    leaves, spec = _pytree.tree_flatten({"a": [1, 2]})
    return leaves == [1, 2] and _pytree.tree_unflatten(leaves, spec) == {"a": [1, 2]}


# --- peft, onnx -------------------------------------------------------------------------------------------------------


def _adapts_beside() -> bool:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    adapted = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"], r=1))
    return (
        isinstance(adapted.base_model.model[0].base_layer, nn.Linear)
        and adapted.active_peft_config.is_prompt_learning is False
        and "default" in adapted.peft_config
    )


def _exports() -> bool:
    import torch

    return {"dynamo", "dynamic_shapes", "input_names", "output_names"} <= _parameters(torch.onnx.export)


PROTOCOLS: tuple[Protocol, ...] = (
    Protocol(library="transformers", does="hands on the keys and values of a generation", holds=_hands_on_a_cache),
    Protocol(library="transformers", does="prepares the inputs of a generation's next step", holds=_prepares_inputs),
    Protocol(
        library="transformers",
        does="runs its own loops of generation",
        names=("_sample", "_beam_search"),
        holds=_calls_another_loop,
    ),
    Protocol(
        library="transformers",
        does="prepares a generation's config",
        names=("_pad_token_tensor", "_mask_length"),
        holds=_prepares_the_config,
    ),
    Protocol(
        library="transformers",
        does="marks a cache that its user gave",
        names=("_is_user_defined",),
        holds=_tells_whose_cache,
    ),
    Protocol(
        library="transformers",
        does="says which caches and which logits a model supports",
        names=("_supports_default_dynamic_cache", "_supports_logits_to_keep"),
        holds=_tells_what_it_supports,
    ),
    Protocol(library="transformers", does="keeps keys and values in the layers of a cache", holds=_keeps_layers),
    Protocol(
        library="transformers",
        does="trains",
        names=(
            "_save_checkpoint",
            "_save_rng_state",
            "_save",
            "_load_from_checkpoint",
            "_load_best_model",
            "_get_output_dir",
            "_prepare_inputs",
        ),
        holds=_trains,
    ),
    Protocol(library="transformers", does="saves the parts of a checkpoint in their order", holds=_saves_in_an_order),
    Protocol(
        library="transformers",
        does="marks models that have adapters",
        names=("_hf_peft_config_loaded",),
        holds=_marks_adapted_models,
    ),
    Protocol(
        library="transformers",
        does="remembers what a config was loaded from",
        names=("_name_or_path",),
        holds=_remembers_the_name,
    ),
    Protocol(
        library="transformers",
        does="remembers how a model attends",
        names=("_attn_implementation",),
        holds=_remembers_the_attention,
    ),
    Protocol(
        library="torch",
        does="keeps the hooks of a module",
        names=("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
        holds=_keeps_hooks,
    ),
    Protocol(
        library="torch",
        does="keeps the children of a module",
        names=("_modules", "_buffers", "_compiled_call_impl"),
        holds=_keeps_modules,
    ),
    Protocol(library="torch", does="counts the writes to a tensor", names=("_version",), holds=_counts_writes),
    Protocol(library="torch", does="wraps what it compiles", names=("_orig_mod",), holds=_wraps_what_it_compiles),
    Protocol(library="torch", does="flattens nested values", names=("_pytree",), holds=_flattens_trees),
    Protocol(library="torch", does="exports to ONNX", holds=_exports),
    Protocol(library="peft", does="keeps what an adapter adapts", holds=_adapts_beside),
)
