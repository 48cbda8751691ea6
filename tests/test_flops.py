"""Floating-point operations against a count by hand, and peaks by the names that JAX gives devices."""

from dataclasses import replace

import pytest

from sbp_jax.config import Model
from sbp_jax.model.parameters import count
from sbp_jax.training.flops import flops_per_token, matmul_parameters, peak_flops

SMALL = Model(width=8, layers=3, heads=4, kv_heads=2, head_dim=16, ffn=32, tied_embeddings=False)


def test_operations_of_a_token_by_hand():
    query = output = 8 * 4 * 16
    key = value = 8 * 2 * 16
    weights = 3 * (query + key + value + output + 3 * 8 * 32) + 8 * 100
    scores = weighted = 2 * 5 * 4 * 16  # a token's products with the keys and values of 5 tokens, forward
    expected = 3 * 2 * weights + 3 * 3 * (scores + weighted) / 2  # backward is twice forward; causality idles half
    assert flops_per_token(SMALL, 100, 5) == expected


def test_matrices_are_all_parameters_but_norms_and_the_embedding():
    norms = 3 * (2 * 8 + 2 * 16) + 8
    assert matmul_parameters(SMALL, 128) == count(SMALL, 128) - norms - 128 * 8
    assert matmul_parameters(SMALL, 128) == matmul_parameters(replace(SMALL, tied_embeddings=True), 128)


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
    ],
)
def test_peak_by_the_name_jax_gives(kind: str, tera: float):
    """Guards against v5e taken for v5p, whose names JAX makes `TPU v5 lite` and `TPU v5`."""
    assert peak_flops(kind) == tera * 1e12


def test_the_peak_of_an_unknown_device_is_unknown():
    assert peak_flops("cpu") is None and peak_flops("NVIDIA GeForce RTX 4090") is None
