"""Text to token ids and back: byte-level BPE, trained here or brought along as a tokenizer.json."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from sbp_jax.config import Tokenizer
from sbp_jax.errors import SbpError


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer that reads special tokens inside documents as plain text and adds none of its own.

    Attributes:
      vocab_size: one more than the largest id.
      end_of_document: id of the token that ends a document and starts the next.
      separator: id of the token between the two documents of a pair.
    """

    vocab_size: int
    end_of_document: int
    separator: int
    _tokenizer: tokenizers.Tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text: int32 [n]."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def tokens_within(self, texts: Sequence[str], characters: Sequence[int]) -> list[int]:
        """How many tokens of each text end within its first so many characters."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ends = ([end for _, end in encoding.offsets] for encoding in encodings)
        return [bisect_right(each, first) for each, first in zip(ends, characters, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def save(self, path: epath.Path) -> None:
        """Writes a Hugging Face tokenizer.json."""
        path.write_text(self._tokenizer.to_str(pretty=True))


def train(texts: Iterable[str], config: Tokenizer) -> TextTokenizer:
    """Trains a byte-level BPE that gives back any text exactly; equal texts give an equal tokenizer.

    Raises:
      SbpError: `vocab_size` cannot hold the 256 bytes and the two special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + 2
    if config.vocab_size < least:
        raise SbpError(
            f"tokenizer.vocab_size is {config.vocab_size}; bytes and special tokens alone take {least}: raise it"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[config.end_of_document, config.separator],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _prepare(tokenizer, config, "the trained tokenizer")


def load(path: epath.Path, config: Tokenizer) -> TextTokenizer:
    """Reads a tokenizer.json and adds the two special tokens where it lacks them.

    Raises:
      SbpError: the file is missing, is no tokenizer, or cannot tell special tokens from text.
    """
    return _prepare(read(path), config, str(path))


def read(path: epath.Path) -> tokenizers.Tokenizer:
    """A tokenizer.json as it is.

    Raises:
      SbpError: the file is missing or is no tokenizer.
    """
    if not path.exists():
        raise SbpError(f"tokenizer file {path} does not exist; check tokenizer.path")
    source = path.read_bytes()
    try:
        return tokenizers.Tokenizer.from_buffer(source)
    except ValueError as error:  # what the library raises for anything that it cannot parse
        raise SbpError(f"{path} is not a Hugging Face tokenizer.json ({error}); check tokenizer.path") from error


def _prepare(tokenizer: tokenizers.Tokenizer, config: Tokenizer, name: str) -> TextTokenizer:
    specials = [config.end_of_document, config.separator]
    if len(set(specials)) < 2 or not all(specials):
        raise SbpError("tokenizer.end_of_document and tokenizer.separator must be two different, non-empty strings")
    tokenizer.add_special_tokens(specials)
    tokenizer.encode_special_tokens = True
    # A tokenizer.json may carry the settings of whoever saved it; here they would cut documents or pad them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = [vocabulary[special] for special in specials]
    text = "a" + "".join(specials)
    if set(ids) & set(tokenizer.encode(text, add_special_tokens=False).ids):
        raise SbpError(f"{name} reads {specials} in a document as control tokens; name others in the tokenizer config")
    return TextTokenizer(max(vocabulary.values()) + 1, ids[0], ids[1], tokenizer)
