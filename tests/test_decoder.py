"""The decoder: packed documents never see one another, and checkpoints come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import nnx

from sbp_jax.config import Model
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface, parameters
from sbp_jax.model.decoder import Decoder

MODEL = Model(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
VOCABULARY = 256


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(MODEL, VOCABULARY, nnx.Rngs(0))


def logits(decoder, tokens, segments=None, positions=None):
    tokens = jnp.asarray(tokens)[None]
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)[None]
    positions = jnp.arange(tokens.shape[1])[None] if positions is None else jnp.asarray(positions)[None]
    return np.asarray(decoder(tokens, segments, positions))[0]


def test_packed_documents_have_the_logits_they_have_alone(decoder):
    first, second = np.arange(1, 10), np.arange(50, 70)
    packed = logits(
        decoder,
        np.concatenate([first, second]),
        np.repeat([1, 2], [len(first), len(second)]),
        np.concatenate([np.arange(len(first)), np.arange(len(second))]),
    )
    np.testing.assert_allclose(packed[: len(first)], logits(decoder, first), atol=1e-5)
    np.testing.assert_allclose(packed[len(first) :], logits(decoder, second), atol=1e-5)


def test_a_position_does_not_see_what_follows(decoder):
    tokens = np.arange(1, 20)
    changed = tokens.copy()
    changed[10:] += 100
    before, after = logits(decoder, tokens), logits(decoder, changed)
    np.testing.assert_allclose(before[:10], after[:10], atol=1e-6)
    assert np.abs(before[10:] - after[10:]).max() > 1e-3


def test_a_layer_of_the_scan_is_the_layer_written_out(decoder):
    """Guards the scan over stacked weights: swapping the two layers must change the logits."""
    tokens = np.arange(1, 20)
    pure = nnx.to_pure_dict(nnx.state(decoder))
    swapped = pure | {"layers": jax.tree.map(lambda stack: stack[::-1], pure["layers"])}
    other = parameters.bind(MODEL, VOCABULARY, swapped)
    assert np.abs(logits(decoder, tokens) - logits(other, tokens)).max() > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_as_safetensors_comes_back_bit_for_bit(tmp_path, tied):
    config = Model(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=48, tied_embeddings=tied)
    state = nnx.to_pure_dict(nnx.state(Decoder(config, VOCABULARY, nnx.Rngs(1))))
    path = epath.Path(tmp_path) / "model.safetensors"
    path.write_bytes(huggingface.to_bytes(state))
    again = huggingface.read(path, config)
    flat, flat_again = jax.tree_util.tree_leaves_with_path(state), jax.tree_util.tree_leaves_with_path(again)
    assert [name for name, _ in flat] == [name for name, _ in flat_again]
    for (_, array), (_, array_again) in zip(flat, flat_again, strict=True):
        np.testing.assert_array_equal(array, array_again)
    tensors = safetensors.numpy.load_file(path)
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (2 * 8, 32), "Hugging Face keeps [out, in]"


def test_a_checkpoint_of_another_shape_is_an_error_that_names_the_tensor(tmp_path, decoder):
    path = epath.Path(tmp_path) / "model.safetensors"
    path.write_bytes(huggingface.to_bytes(nnx.to_pure_dict(nnx.state(decoder))))
    with pytest.raises(SbpError, match="shape"):
        huggingface.read(path, Model(width=64, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48))
    with pytest.raises(SbpError, match="no tensor model.layers.2"):
        huggingface.read(path, Model(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=48))
