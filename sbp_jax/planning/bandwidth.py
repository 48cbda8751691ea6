"""What generation has to read from memory and to compute, and how fast a chip could do it at best.

Legend: D width, N query heads, K key-value heads, H head dimension, F feed-forward width, V vocabulary, L layers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sbp_jax.config import Model
from sbp_jax.planning.topology import Topology
from sbp_jax.training.flops import matmul_parameters


@dataclass(frozen=True)
class Documents:
    """Mean lengths in tokens: of a prompt, and of what is generated behind it."""

    prompt: int
    new: int

    @property
    def held(self) -> float:
        """Tokens that a slot holds on average, its document being half done."""
        return self.prompt + self.new / 2


def position_bytes(model: Model) -> int:
    """Keys and values of one token in all layers: 2 L K H numbers."""
    return 2 * model.layers * model.kv_heads * model.head_dim * np.dtype(model.dtype).itemsize


def step_weight_bytes(model: Model, vocabulary: int) -> int:
    """Weights that each step reads: all matrices; of an embedding that is not tied, a row for each slot is no sum."""
    return matmul_parameters(model, vocabulary) * np.dtype(model.dtype).itemsize


def token_flops(model: Model, vocabulary: int, held: float) -> float:
    """Operations for one new token: 2 x `matmul_parameters` + 4 L N H for each of the tokens held."""
    return 2 * matmul_parameters(model, vocabulary) + 4 * model.layers * model.heads * model.head_dim * held


def prompt_flops(model: Model, length: int) -> float:
    """Operations for one token of a prompt, which needs no logits; attention is causal, half of the square."""
    return 2 * matmul_parameters(model, 0) + 2 * model.layers * model.heads * model.head_dim * length


def speed(
    model: Model, vocabulary: int, documents: Documents, slots: int, devices: int, topology: Topology
) -> dict[str, Any]:
    """The bounds of decoding by one copy of the model, bytes and operations being those of one of its devices.

    Args:
      vocabulary: rows of the embedding table.
      devices: that the copy is cut over.
    """
    chip = topology.chip
    chips = devices / chip.devices
    weights = step_weight_bytes(model, vocabulary) / devices
    position = position_bytes(model) / devices
    cache = slots * documents.held * position
    seconds = (weights + cache) / chip.bandwidth
    flops = token_flops(model, vocabulary, documents.held)
    product_seconds = slots * flops / devices / topology.flops
    return {
        "weight_bytes": weights,
        "position_bytes": position,
        "held": documents.held,
        "cache_bytes": cache,
        "step_bytes": weights + cache,
        "bandwidth": chip.bandwidth,
        "step_seconds": seconds,
        "tokens_a_second_a_chip": slots / seconds / chips,
        "flops_a_token": flops,
        "flops": topology.flops,
        "products_seconds": product_seconds,
        "products_tokens_a_second_a_chip": slots / product_seconds / chips,
        "bound_tokens_a_second_a_chip": slots / max(seconds, product_seconds) / chips,
    }


def cost(
    model: Model,
    documents: Documents,
    tokens: float,
    made: dict[str, Any],
    topology: Topology,
    utilisation: float,
    prompt_utilisation: float,
) -> dict[str, Any]:
    """Chip-hours for so many new tokens, at the bounds and at stated shares of them.

    Args:
      made: from `speed`.
      utilisation: share of the bound that decoding reaches.
      prompt_utilisation: share of the peak of products that reading prompts reaches.
    """
    decoding = tokens / made["bound_tokens_a_second_a_chip"] / 3600
    read = tokens / documents.new * documents.prompt
    flops = prompt_flops(model, documents.prompt)
    prompts = read * flops / (topology.flops * topology.chip.devices) / 3600
    return {
        "tokens": tokens,
        "utilisation": utilisation,
        "prompt_utilisation": prompt_utilisation,
        "prompt_tokens": read,
        "prompt_flops_a_token": flops,
        "decoding_chip_hours_at_bound": decoding,
        "decoding_chip_hours": decoding / utilisation,
        "prompts_chip_hours_at_peak": prompts,
        "prompts_chip_hours": prompts / prompt_utilisation,
        "chip_hours": decoding / utilisation + prompts / prompt_utilisation,
    }
