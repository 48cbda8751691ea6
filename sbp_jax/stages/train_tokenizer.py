"""Stage `train_tokenizer`: a byte-level BPE of the capped set, or the user's own tokenizer."""

from collections.abc import Iterator
from itertools import islice

from etils import epath

from sbp_jax.artifacts import Artifact, Output
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data.splits import members, texts
from sbp_jax.progress import progress
from sbp_jax.text.tokenizer import load, train

VERSION = 1
FILE = "tokenizer.json"
ROUND_TRIPS = 1000  # texts that are encoded and decoded to see whether a tokenizer changes them


def run(
    output: Output, *, documents: Artifact, splits: Artifact, tokenizer: Tokenizer, execution: Execution
) -> Artifact:
    """Writes `tokenizer.json`, with the two special tokens in it.

    Only the capped set is read: what the other arms would see must not shape the vocabulary.

    Raises:
      SbpError: the user's file is missing or is no tokenizer, or `vocab_size` is too small.
    """
    if tokenizer.path is not None:
        trained = load(epath.Path(tokenizer.path).expanduser(), tokenizer)
    elif output.has(FILE):
        trained = load(output.path / FILE, tokenizer)
    else:
        trained = train(_texts(output, documents, splits), tokenizer)
    if not output.has(FILE):
        with output.writing(FILE) as writing:
            trained.save(writing.path)
    stats = {"vocab_size": trained.vocab_size}
    if tokenizer.path is not None:  # another's may drop case, accents or spaces
        sample = list(islice(_texts(output, documents, splits), ROUND_TRIPS))
        decoded = map(trained.decode, trained.encode_batch(sample))
        stats |= {"texts_sampled": len(sample), "texts_changed": sum(map(str.__ne__, sample, decoded))}
    return output.finish(stats)


def _texts(output: Output, documents: Artifact, splits: Artifact) -> Iterator[str]:
    capped = members(splits, "capped")
    with progress(output.label, len(capped), "documents") as counter:
        for shard in texts(documents, capped):
            yield from shard
            counter.advance(len(shard))
