"""Log-likelihoods of continuations under a decoder, and whether each of their tokens is the most probable one.

Logits exist only where a target is predicted, and a chunk of them at a time.

Legend: B rows, T positions, K places of a row for targets, D width, V vocabulary; N query heads, J key-value heads,
G query heads per key-value head, H head dimension, C query and S key positions of a block, R = G C rows.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.model.cached_attention import MASKED
from sbp_jax.model.parameters import Parameters, bind, to_compute_dtype
from sbp_jax.tasks.branches import BRANCHES, Batch, batches, fitted
from sbp_jax.training.batches import host_rows
from sbp_jax.training.loss import target_scores
from sbp_jax.training.step import InMesh, rows_sharding

BLOCK = 128  # query positions whose scores are computed together
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16384  # of a device, computed together

Request = tuple[Sequence[int], Sequence[int]]


class Likelihood:
    """A model on its devices.

    Attributes:
      context: tokens that it reads at most.
      cut: requests so far whose context had to be cut from the left.
    """

    def __init__(self, model: Model, vocabulary: int, parameters: Parameters, mesh: Mesh, context: int):
        self._step, self._parameters, self._mesh = _step(model, vocabulary, mesh), parameters, mesh
        self.context, self.cut = context, 0

    def __call__(
        self, requests: Sequence[Request], each: Callable[[int], None] = lambda done: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood in nats (float64 [n]) of each continuation, and whether it is what greedy decoding writes.

        Args:
          requests: tokens of a context and of its continuation, of each one at least.
          each: called after every batch with the number of targets in it.

        Raises:
          SbpError: a continuation that is longer than the context of the model, or logits that are no numbers.
        """
        cut = []
        for context, continuation in requests:
            if len(continuation) > self.context:
                raise SbpError(
                    f"a continuation has {len(continuation)} tokens, and the model reads {self.context} in all;"
                    " leave out the task, or take a model with a longer context"
                )
            cut.append(fitted(context, continuation, self.context))
            self.cut += len(cut[-1][0]) < len(context)
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        platform = self._mesh.devices.flat[0].platform
        size = (CPU_BATCH_TOKENS if platform == "cpu" else BATCH_TOKENS) * shards
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        for batch in batches(cut, self.context, size, shards):
            nats_BK, best_BK = map(np.asarray, self._step(self._parameters, self._place(batch)))
            mine_BK = batch.owners >= 0
            np.add.at(nats, batch.owners[mine_BK], nats_BK[mine_BK].astype(np.float64))
            np.logical_and.at(greedy, batch.owners[mine_BK], best_BK[mine_BK])
            each(int(mine_BK.sum()))
        if not np.isfinite(nats).all():
            raise SbpError("the model gives logits that are no finite numbers; its training diverged: take another")
        return -nats, greedy

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        """The arrays spread over the mesh; every host has all of them and gives the rows of its own devices."""
        names = ("tokens", "branches", "positions", "places", "targets")
        arrays = {name: getattr(batch, name) for name in names}
        own = host_rows(len(batch.tokens), self._mesh)
        placed: dict[str, jax.Array] = {}
        for name, array in arrays.items():
            where = rows_sharding(array.shape, self._mesh)
            placed[name] = (
                jax.device_put(array, where)
                if own is None
                else jax.make_array_from_process_local_data(where, array[own], array.shape)
            )
        return placed


@lru_cache(maxsize=4)
def _step(model: Model, vocabulary: int, mesh: Mesh) -> InMesh:
    """From parameters and the arrays of a batch: nats and whether nothing is more probable, both [B, K], on each host.

    Models of one shape share the compiled programs, one for each shape of a batch.
    """

    def scores(parameters: Parameters, batch: dict[str, Array]) -> tuple[Array, Array]:
        decoder = bind(model, vocabulary, to_compute_dtype(model, parameters))
        hidden_BTD = decoder.hidden(batch["tokens"], batch["branches"], batch["positions"], attend)
        hidden_BKD = jnp.take_along_axis(hidden_BTD, batch["places"][:, :, None], axis=1)
        return target_scores(*decoder.unembed(hidden_BKD), batch["targets"], vocabulary)

    whole: Any = NamedSharding(mesh, PartitionSpec())
    return InMesh(jax.jit(scores, out_shardings=(whole, whole)), mesh)


def attend(
    query_BTNH: Float[Array, "B T N H"],
    key_BTJH: Float[Array, "B T J H"],
    value_BTJH: Float[Array, "B T J H"],
    branches_BT: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Attention in which a position sees what precedes it in its own branch and in the context of its group.

    A block of queries at a time, as the training's on a CPU: each meets the keys up to its end.
    """
    rows, length, heads, size = query_BTNH.shape
    kv_heads = key_BTJH.shape[2]
    groups = heads // kv_heads
    query_BJGTH = (query_BTNH * size**-0.5).reshape(rows, length, kv_heads, groups, size).transpose(0, 2, 3, 1, 4)
    key_BJTH, value_BJTH = key_BTJH.swapaxes(1, 2), value_BTJH.swapaxes(1, 2)
    attended = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        query_BJRH = query_BJGTH[:, :, :, start:end].reshape(rows, kv_heads, -1, size)
        scores = jnp.einsum("bjrh,bjsh->bjrs", query_BJRH, key_BJTH[:, :, :end], preferred_element_type=jnp.float32)
        mask_BCS = _visible(branches_BT, start, end)
        scores_BJRS = jnp.where(jnp.tile(mask_BCS, (1, groups, 1))[:, None], scores, MASKED)
        weights_BJRS = jnp.exp(scores_BJRS - jnp.max(scores_BJRS, axis=-1, keepdims=True))
        sums_BJR1 = jnp.sum(weights_BJRS, axis=-1, keepdims=True)
        mixed_BJRH = jnp.einsum("bjrs,bjsh->bjrh", weights_BJRS.astype(value_BJTH.dtype), value_BJTH[:, :, :end])
        mixed_BJRH = (mixed_BJRH / sums_BJR1).astype(value_BJTH.dtype)
        attended.append(mixed_BJRH.reshape(rows, kv_heads, groups, end - start, size))
    return jnp.concatenate(attended, axis=3).transpose(0, 3, 1, 2, 4).reshape(query_BTNH.shape)


def _visible(branches_BT: Array, start: int, end: int) -> Bool[Array, "B C S"]:
    """Which of the keys up to `end` each query from `start` on sees."""
    query_BC1, key_B1S = branches_BT[:, start:end, None], branches_BT[:, None, :end]
    causal_CS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    context_B1S, one_group_BCS = key_B1S % BRANCHES == 0, query_BC1 // BRANCHES == key_B1S // BRANCHES
    return causal_CS & ((query_BC1 == key_B1S) | (context_B1S & one_group_BCS))
