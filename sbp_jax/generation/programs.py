"""The two compiled programs of the engine, and all that they are given: for devices that are there or are not.

Legend: M blocks of prompts read together with P tokens each, B slots, Z pages that a slot can hold, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.config import Model
from sbp_jax.generation.decoding import Slots, decode, idle_rows, idle_slots
from sbp_jax.model import cached_attention, decode_kernel, incremental
from sbp_jax.model.incremental import Caches, by_layer, empty_caches, read
from sbp_jax.model.parameters import Parameters, abstract, to_compute_dtype
from sbp_jax.parallel.sharding import sharding

CACHE_DIMENSIONS = (None, "kv_heads", None, None)
CACHE_SHARE = 0.75  # of the context that a slot holds on average, if nothing else is asked for
PAGE, TPU_PAGE = 64, 128  # positions; a TPU pads the last dimension of an array to 128
PIECE = 32  # tokens a block of prompts
CPU_PROMPT_TOKENS, PROMPT_TOKENS = 512, 2048  # read together


@dataclass(frozen=True)
class Programs:
    """Jitted functions, not compiled yet, and shape, dtype and sharding of their arguments.

    Attributes:
      mesh: each call and compilation is to be in its context, `activations`.
      page: positions of a page.
      page_count: pages in all.
      pieces: M.
      everywhere: how what is small is placed, a copy on each device.
      loaded: the parameters as they are read from a file, layers stacked.
      parameters: the same, layer by layer.
      caches, slots: what both calls hand on, and the second one.
      read: parameters, caches, `read_arguments`; gives caches.
      decode: parameters, caches, slots, `decode_arguments`; gives caches, slots and outputs.
    """

    mesh: Mesh
    page: int
    page_count: int
    pieces: int
    everywhere: NamedSharding
    loaded: Parameters
    parameters: Parameters
    caches: Caches
    slots: Slots
    make_caches: Callable[[], Caches]
    read: Any
    decode: Any
    read_arguments: tuple[Any, ...]
    decode_arguments: tuple[Any, ...]


def programs(
    config: Model,
    vocabulary: int,
    tokens: int,
    end_of_document: int,
    separator: int,
    *,
    context: int,
    mesh: Mesh,
    slots: int,
    decode_steps: int,
    seed: int,
    cache_tokens: int | None = None,
    circles: bool = True,
) -> Programs:
    """The programs for a model on the devices of a mesh. Nothing is computed.

    Args:
      vocabulary: rows of the embedding table.
      tokens: of them, those that the tokenizer has.
      end_of_document: ends a text.
      separator: is never chosen.
      The others are those of `Engine`.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        config = replace(config, dtype="float32")  # its products in bfloat16 are no faster, the rest is slower
    page = TPU_PAGE if platform == "tpu" else PAGE
    each = -(-context // page)
    wanted = CACHE_SHARE * slots * context if cache_tokens is None else cache_tokens
    page_count = max(each, math.ceil(wanted / page))
    pieces = max(1, (CPU_PROMPT_TOKENS if platform == "cpu" else PROMPT_TOKENS) // PIECE)
    valid_V = np.arange(vocabulary) < tokens
    valid_V[separator : separator + 1] = False  # none, where it lies past the table
    attend = decode_kernel.triton if decode_kernel.runs(config, platform) else cached_attention.xla
    settle = incremental.settle_by_page if platform == "tpu" else incremental.settle
    choices = (decode_steps, end_of_document, valid_V, seed, circles, attend, settle)

    everywhere = NamedSharding(mesh, PartitionSpec())
    loaded = to_compute_dtype(config, abstract(config, vocabulary, mesh))  # once instead of at each step
    parameters = by_layer(loaded)
    make = partial(empty_caches, config, page_count, page)
    caches = jax.tree.map(
        lambda leaf: _abstract(leaf, sharding(CACHE_DIMENSIONS, leaf.shape, mesh)), jax.eval_shape(make)
    )
    weights, placed = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (parameters, caches))

    def whole(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _abstract(leaf, everywhere), tree)

    def integers(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=everywhere)

    admitted = whole((idle_rows(slots), np.zeros(slots, bool)))
    return Programs(
        mesh,
        page,
        page_count,
        pieces,
        everywhere,
        loaded,
        parameters,
        caches,
        whole(idle_slots(slots)),
        jax.jit(make, out_shardings=placed),
        jax.jit(
            partial(read, config),
            donate_argnums=1,
            in_shardings=(weights, placed, *[everywhere] * 3),
            out_shardings=placed,
        ),
        jax.jit(
            partial(decode, config, vocabulary, *choices),
            donate_argnums=(1, 2),
            in_shardings=(weights, placed, *[everywhere] * 4),
            out_shardings=(placed, everywhere, everywhere),
        ),
        (integers(pieces, PIECE), integers(pieces, each), integers(pieces)),
        (*admitted, integers(slots, each)),
    )


def _abstract(leaf: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
