"""What a training step costs in floating-point operations, and what a device can do.

Legend: D width, N query heads, K key-value heads, H head dimension, F feed-forward width, V vocabulary, L layers,
T context.
"""

from sbp_jax.config import Model

# Dense bfloat16 operations a second of one device as JAX counts devices, by the beginning of its `device_kind`; of two
# that fit, the first counts. The sources are in docs/planning.md.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,  # v6e
    "TPU7x": 2307e12 / 2,  # a chip is two devices
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def matmul_parameters(model: Model, vocabulary: int) -> int:
    """Parameters that take part in a product: L (2DNH + 2DKH + 3DF) + DV.

    The embedding look-up is no product and the scales of norms are not counted; a table that is tied counts once, as
    the unembedding.
    """
    attention = 2 * model.width * (model.heads + model.kv_heads) * model.head_dim
    return model.layers * (attention + 3 * model.width * model.ffn) + model.width * vocabulary


def flops_per_token(model: Model, vocabulary: int, context: int) -> float:
    """Operations for one token of training, forward and backward: 6 x `matmul_parameters` + 6 L T N H.

    A product costs two operations a parameter forward and four backward. Attention's two products of T scores with
    vectors of NH cost 12 L T N H; the half of that above the diagonal is not counted, for causality makes it idle work.
    Nothing that a remat policy computes again counts, nor do the rows that pad the vocabulary, so that dividing by
    `peak_flops` gives the model's FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B, which counts the idle half).
    """
    causal = 6 * model.layers * context * model.heads * model.head_dim
    return float(6 * matmul_parameters(model, vocabulary) + causal)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 operations a second of a device, by JAX's `device_kind`; None: not known, such as a CPU."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if device_kind.startswith(kind)), None)
