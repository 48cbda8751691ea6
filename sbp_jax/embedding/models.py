"""The models that embed: a BERT with mean pooling, a Qwen3-Embedding, and the base model that was trained here.

Legend: B batch, T positions, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.config import Embedding, Model
from sbp_jax.embedding import own_vectors
from sbp_jax.embedding.embedder import Embedder, last, mean, unit
from sbp_jax.errors import SbpError
from sbp_jax.model import attention, encoder, huggingface, parameters
from sbp_jax.model.encoder import read_json
from sbp_jax.text.tokenizer import TextTokenizer

SELF = "self"  # the value of `embedding.model` that means the base model
KINDS = ("bert", "qwen3")
_POOLING, _MODULES = "1_Pooling/config.json", "modules.json"  # as sentence-transformers writes them
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}  # before its version 6


def files(embedding: Embedding) -> list[epath.Path]:
    """The files of the user's whose content decides the embeddings.

    Raises:
      SbpError: there is no such model, or a file is missing.
    """
    if embedding.vectors is not None:
        return own_vectors.files(embedding.vectors)
    if embedding.model == SELF:
        return []
    folder = encoder.find(embedding.model)
    pooling = [path for path in (folder / _POOLING, folder / _MODULES) if path.exists()]
    if _kind(folder) == "qwen3":
        return huggingface.files(folder) + pooling
    return encoder.files(embedding.model) + pooling


def load(embedding: Embedding, mesh: Mesh, attend: str = "auto") -> Embedder:
    """The packaged all-MiniLM-L6-v2, or the model of the user's folder.

    Args:
      attend: `execution.attention`.

    Raises:
      SbpError: the package or a file is missing or damaged, the files do not belong together, the model is of another
        kind or pools otherwise, or it cannot read `max_tokens` or give `dimensions`.
    """
    folder = encoder.find(embedding.model)
    make = _bert if _kind(folder) == "bert" else _qwen3
    return make(folder, embedding, mesh, attend)


def load_base(
    folder: epath.Path, tokenizer: TextTokenizer, model: Model, embedding: Embedding, mesh: Mesh, attend: str = "auto"
) -> Embedder:
    """The base model as an embedder: the mean of its last hidden states over a document's tokens.

    A document is read as in training, behind the token that ends the one before it, whose own state says nothing of the
    document and does not enter the mean.

    Args:
      folder: of a checkpoint.
      tokenizer: that it was trained with.
      model: the decoder.

    Raises:
      SbpError: the checkpoint is damaged, of another model or tokenizer, or cannot read `max_tokens`.
    """

    def tokenize(texts: Sequence[str]) -> list[Sequence[int]]:
        encoded = tokenizer.encode_batch([embedding.instruction + text for text in texts])
        return [[tokenizer.end_of_document, *ids[: embedding.max_tokens - 1].tolist()] for ids in encoded]

    def pool(x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
        places_T = jnp.arange(x_BTD.shape[1])
        of_document_BT = (places_T > 0) | (lengths_B[:, None] == 1)  # nothing else is there in an empty one
        return mean(x_BTD, of_document_BT & (places_T < lengths_B[:, None]))

    huggingface.demand_model(huggingface.inspect(folder), model, str(folder))
    return _decoder(folder, embedding, mesh, attend, tokenizer.vocab_size - 1, tokenize, pool)


def _kind(folder: epath.Path) -> str:
    kind = read_json(folder / "config.json").get("model_type", "bert")
    if kind not in KINDS:
        raise SbpError(f"the model in {folder} is of type {kind!r}; embedding.model can be a bert or a qwen3")
    return kind


def _bert(folder: epath.Path, embedding: Embedding, mesh: Mesh, attend: str) -> Embedder:
    _demand_pooling(folder, "mean", embedding)
    tokenizer, largest = _read_tokenizer(folder)
    module = encoder.load(folder, embedding.dtype)
    _demand_fit(folder, embedding, largest, module.vocabulary, module.config.width, module.config.positions)
    if not tokenizer.num_special_tokens_to_add(False):
        raise SbpError(f"{folder}/tokenizer.json adds no [CLS] and [SEP]; take the one that the model was trained with")
    tokenizer.enable_truncation(embedding.max_tokens)

    def tokenize(texts: Sequence[str]) -> list[Sequence[int]]:
        prefixed = [embedding.instruction + text for text in texts]
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(prefixed)]

    width = embedding.dimensions or module.config.width
    graph, weights = nnx.split(module)

    def embed(weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        x_BTD = nnx.merge(graph, weights)(tokens_BT, lengths_B)
        return unit(mean(x_BTD, jnp.arange(x_BTD.shape[1]) < lengths_B[:, None]), width)

    whole = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(embed, out_shardings=whole)
    return Embedder(width, mesh, module.config, tokenize, program, jax.device_put(weights, whole))


def _qwen3(folder: epath.Path, embedding: Embedding, mesh: Mesh, attend: str) -> Embedder:
    """Qwen3-Embedding (Zhang et al. 2025): the last hidden state of the token that ends each text."""
    _demand_pooling(folder, "lasttoken", embedding)
    tokenizer, largest = _read_tokenizer(folder)
    # Newer files append the end of a text themselves, older ones leave it to the reader.
    end = None if tokenizer.num_special_tokens_to_add(False) else huggingface.inspect(folder).end_of_document
    closing = [] if end is None else [end]
    if not tokenizer.encode("").ids and not closing:
        raise SbpError(
            f"{folder}/tokenizer.json appends no token to a text and config.json names no eos_token_id; the embedding"
            " is the state of that token: take the files of a Qwen3-Embedding"
        )
    tokenizer.enable_truncation(embedding.max_tokens - len(closing))
    task = f"Instruct: {embedding.instruction}\nQuery:" if embedding.instruction else ""

    def tokenize(texts: Sequence[str]) -> list[Sequence[int]]:
        return [encoding.ids + closing for encoding in tokenizer.encode_batch_fast([task + text for text in texts])]

    return _decoder(folder, embedding, mesh, attend, max([largest, *closing]), tokenize, last)


def _decoder(
    folder: epath.Path,
    embedding: Embedding,
    mesh: Mesh,
    attend: str,
    largest: int,
    tokenize: Callable[[Sequence[str]], list[Sequence[int]]],
    pool: Callable[[jax.Array, jax.Array], jax.Array],
) -> Embedder:
    """A decoder whose hidden states after the final norm are pooled."""
    checkpoint = huggingface.inspect(folder)
    model, vocabulary = replace(checkpoint.model, dtype=embedding.dtype), checkpoint.vocabulary
    _demand_fit(folder, embedding, largest, vocabulary, model.width, checkpoint.context)
    target = parameters.to_compute_dtype(model, parameters.abstract(model, vocabulary, mesh))
    weights = huggingface.load(folder, model, vocabulary, mesh, target)
    width, platform = embedding.dimensions or model.width, mesh.devices.flat[0].platform

    def embed(weights: Any, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        decoder = parameters.bind(model, vocabulary, weights)
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
        # One that was asked for may not run at every length that texts have; what is fastest there gives the same.
        backend = attention.choose("xla" if attend == "xla" else "auto", platform, model, tokens_BT.shape[1])
        x_BTD = decoder.hidden(tokens_BT, segments_BT, positions_BT, backend)
        return unit(pool(decoder.unembed(x_BTD.astype(jnp.float32))[0], lengths_B), width)

    program = jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return Embedder(width, mesh, model, tokenize, program, weights)


def _read_tokenizer(folder: epath.Path) -> tuple[tokenizers.Tokenizer, int]:
    """A folder's tokenizer, and its largest id."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise SbpError(f"the model in {folder} has no tokenizer.json; embedding.model must be a folder that holds it")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:  # what the library raises for anything that it cannot parse
        raise SbpError(f"{path} is not a Hugging Face tokenizer ({error}); fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, max(tokenizer.get_vocab(with_added_tokens=True).values())


def _demand_pooling(folder: epath.Path, wanted: str, embedding: Embedding) -> None:
    """Raises `SbpError` where the files of sentence-transformers beside a model say that it embeds in another way."""
    pooling = read_json(folder / _POOLING)
    modes = pooling.get("pooling_mode", [_MODES.get(name, name) for name in pooling if _on(pooling, name)])
    modes = [modes] if isinstance(modes, str) else modes
    if pooling and list(modes) != [wanted]:
        raise SbpError(
            f"the model in {folder} pools by {', '.join(modes)}, not {wanted} as its kind does here; take another"
        )
    if not pooling.get("include_prompt", True) and embedding.instruction:
        raise SbpError(
            f"the model in {folder} leaves a prompt out of the mean, which is not done here; set no instruction"
        )
    modules = [str(module["type"]).rpartition(".")[2] for module in read_json(folder / _MODULES) or []]
    if extra := [module for module in modules if module not in ("Transformer", "Pooling", "Normalize")]:
        raise SbpError(f"the model in {folder} has a module {extra[0]}, which is not computed here; take another")


def _on(pooling: dict[str, Any], name: str) -> bool:
    return name.startswith("pooling_mode_") and bool(pooling[name])


def _demand_fit(
    folder: epath.Path, embedding: Embedding, largest: int, vocabulary: int, width: int, positions: int
) -> None:
    if largest >= vocabulary:  # a look-up out of range would be clamped in silence
        sizes = f"the tokenizer has an id {largest}, the model {vocabulary} embeddings"
        raise SbpError(f"the files in {folder} do not belong together: {sizes}; take both from one model")
    if not 2 < embedding.max_tokens <= positions:
        raise SbpError(
            f"embedding.max_tokens is {embedding.max_tokens}; the model in {folder} reads 3 to {positions} tokens"
        )
    if embedding.dimensions is not None and embedding.dimensions > width:
        raise SbpError(f"embedding.dimensions is {embedding.dimensions}; the vectors of {folder} have {width}")
