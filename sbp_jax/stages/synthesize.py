"""Stage `synthesize`: the synthesizer continues capped documents, d2 from p(d2 | d1) (SBP, step 3)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from sbp_jax.artifacts import Artifact, Output, arrayrecord, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.config import Execution, Model, Synthesis, Tokenizer
from sbp_jax.data.budget import training_tokens as token_budget
from sbp_jax.data.splits import members
from sbp_jax.errors import SbpError
from sbp_jax.generation.engine import Completion, Engine, Request
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import abstract, to_compute_dtype
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.progress import progress
from sbp_jax.text.template import prompt
from sbp_jax.text.tokenizer import TextTokenizer, load

VERSION = 1
LEAST_ROOM = 32  # new tokens that must fit behind a prompt
SCHEMA = pa.schema(
    {
        "ordinal": pa.int64(),
        "id": pa.string(),
        "text": pa.string(),
        "seed": pa.int64(),
        "seed_id": pa.string(),
        "sample": pa.int32(),
        "key": pa.string(),  # synthesis seed:ordinal of the seed document:sample number
        "finish": pa.string(),
        "new_tokens": pa.int32(),  # the closing end_of_document included
        "logprob": pa.float32(),
        "synthesizer": pa.string(),
        "temperature": pa.float32(),
        "top_p": pa.float32(),
    }
)


def run(
    output: Output,
    *,
    model: Artifact,
    capped: Artifact,
    oracle: Artifact,
    tokens: Artifact,
    splits: Artifact,
    documents: Artifact,
    tokenizer: Artifact,
    settings: Tokenizer,
    decoder: Model,
    synthesis: Synthesis,
    context: int,
    share: float,
    training_tokens: int | None,
    execution: Execution,
) -> Artifact:
    """Writes as many documents as the arms need before filtering, in shards that are each complete or absent.

    Request i takes document i mod n of a shuffle of the n seeds, another shuffle for each pass over them.

    Args:
      model: the tuned synthesizer; its best checkpoint is used.
      capped: the packed capped stream, for the mean length of a document.
      oracle: the packed oracle stream, for the token budget.
      context: tokens of a prompt and its continuation.
      share: greatest share of synthetic tokens among the arms.

    Raises:
      SbpError: settings out of range, no seed with room behind it, or a model that does not fit or gives no numbers.
    """
    text_tokenizer = load(tokenizer.file("tokenizer.json"), settings)
    records = arrayrecord.source(tokens)
    seeds, too_long = _seeds(splits, records, context)
    if len(seeds) == 0:
        raise SbpError(
            f"{output.label}: none of the {too_long:,} capped documents leaves room for {LEAST_ROOM} new tokens"
            f" in a context of {context}; raise tuning.context"
        )
    mean_length = min(capped.stats["targets"] / capped.stats["documents"], synthesis.max_new_tokens)
    total = math.ceil(share * token_budget(training_tokens, oracle) * synthesis.oversample / mean_length)
    size = synthesis.documents_per_shard
    missing = [index for index in range(math.ceil(total / size)) if not output.has(f"part-{index:05d}.parquet")]
    numbers = {index: range(index * size, min(total, (index + 1) * size)) for index in missing}
    stats = {"seeds": len(seeds), "seeds_too_long": too_long}
    if not missing:
        return output.finish(stats)

    engine = _engine(model, decoder, text_tokenizer, synthesis, context, one_host_mesh(execution.mesh), execution)
    limits = (synthesis.max_new_tokens, context)
    request = _requester(seeds, records, text_tokenizer, synthesis.seed, limits)
    ids = parquet.read(documents, ["id"])["id"]
    constants = {"synthesizer": model.key, "temperature": synthesis.temperature, "top_p": synthesis.top_p}
    opened: dict[int, dict[int, dict]] = {}
    with progress(output.label, total, "documents") as counter:
        counter.skip(total - sum(map(len, numbers.values())))
        for completion in engine.generate(request(number) for index in missing for number in numbers[index]):
            row = _row(completion, text_tokenizer, ids, synthesis.seed) | constants
            index = row["ordinal"] // size
            shard = opened.setdefault(index, {})
            shard[row["ordinal"]] = row
            counter.advance()
            if len(shard) == len(numbers[index]):
                output.shard(index, ".parquet", _writer(opened.pop(index)))
    return output.finish(stats)


def _seeds(splits: Artifact, records: Sequence[bytes], context: int) -> tuple[np.ndarray, int]:
    """Ordinals of the capped documents that leave room to write, and how many do not."""
    capped = members(splits, "capped")
    prompts = np.array([len(records[ordinal]) // 4 + 2 for ordinal in capped.tolist()], np.int64)
    fits = prompts + LEAST_ROOM <= context
    return capped[fits], int(np.count_nonzero(~fits))


def _engine(
    model: Artifact,
    decoder: Model,
    tokenizer: TextTokenizer,
    synthesis: Synthesis,
    context: int,
    mesh: Mesh,
    execution: Execution,
) -> Engine:
    folder = model.folder("best")
    vocabulary = huggingface.inspect(folder).vocabulary
    target = to_compute_dtype(decoder, abstract(decoder, vocabulary, mesh))
    parameters = huggingface.load(folder, decoder, vocabulary, mesh, target)
    shape = {"slots": execution.slots, "decode_steps": execution.decode_steps}
    return Engine(decoder, parameters, tokenizer, synthesis, context=context, mesh=mesh, name=str(folder), **shape)


def _requester(
    seeds: np.ndarray, records: Sequence[bytes], tokenizer: TextTokenizer, seed: int, limits: tuple[int, int]
) -> Callable[[int], Request]:
    """The function from a number to its request; ascending numbers shuffle once for each pass."""
    shuffled: dict[int, np.ndarray] = {}

    def request(number: int) -> Request:
        sample, place = divmod(number, len(seeds))
        if sample not in shuffled:
            shuffled.clear()
            shuffled[sample] = np.random.default_rng([seed, sample]).permutation(seeds)
        ordinal = int(shuffled[sample][place])
        tokens = prompt(np.frombuffer(records[ordinal], "<i4"), tokenizer.end_of_document, tokenizer.separator)
        return Request(number, ordinal, sample, tokens, min(limits[0], limits[1] - len(tokens)))

    return request


def _row(completion: Completion, tokenizer: TextTokenizer, ids: pa.ChunkedArray, seed: int) -> dict:
    request = completion.request
    return {
        "ordinal": request.number,
        "id": f"syn-{request.ordinal}-{request.sample}",
        "text": tokenizer.decode(completion.tokens),
        "seed": request.ordinal,
        "seed_id": ids[request.ordinal].as_py(),
        "sample": request.sample,
        "key": f"{seed}:{request.ordinal}:{request.sample}",
        "finish": completion.finish,
        "new_tokens": len(completion.tokens) + (completion.finish == "end"),
        "logprob": completion.logprob,
    }


def _writer(rows: dict[int, dict]) -> Callable[[Writing], None]:
    def write(writing: Writing) -> None:
        ordered = [rows[number] for number in sorted(rows)]
        parquet.write(writing, pa.Table.from_pylist(ordered, SCHEMA))
        writing.stats = {"documents": len(ordered), "new_tokens": sum(row["new_tokens"] for row in ordered)}
        writing.stats |= {f"finish_{name}": sum(row["finish"] == name for row in ordered) for name in ("end", "length")}

    return write
