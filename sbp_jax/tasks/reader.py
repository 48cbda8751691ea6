"""How a model's tokenizer reads prompts: as the harness's Hugging Face backend has it do.

Unlike the documents of training, prompts may name special tokens, and get those that the tokenizer itself puts around
every text (Llama's begin-of-text).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from etils import epath

from sbp_jax.errors import SbpError
from sbp_jax.model.huggingface import TOKENIZER, TOKENIZER_CONFIG
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Reader:
    """A tokenizer and what it knows of the ends of texts.

    Attributes:
      prefix: id of the token that an empty context stands for: the one that begins a text, or the one that ends it.
      end: id of the token that ends a text.
    """

    prefix: int
    end: int
    _tokenizer: tokenizers.Tokenizer

    def encode(self, texts: Sequence[str], special: bool | None = None) -> list[list[int]]:
        """Token ids of each text.

        Args:
          special: whether the tokenizer puts its own tokens around a text; None: unless it begins with the prefix.
        """
        if special is None:
            prefix = self.decode([self.prefix], skip=False)
            bare = [bool(prefix) and text.startswith(prefix) for text in texts]
            if any(bare):
                sides = (self.encode([text for text, own in zip(texts, bare, strict=True) if own == side], not side)
                         for side in (True, False))  # fmt: skip
                own_prefix, plain = map(iter, sides)
                return [next(own_prefix if own else plain) for own in bare]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=special is not False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip: bool = True) -> str:
        """The text of token ids, without special tokens or, if not `skip`, with them spelled out."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip)

    def for_engine(self, rows: int) -> TextTokenizer:
        """The same for an engine of generation, which may choose every token.

        Args:
          rows: of the model's embedding table.
        """
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        return TextTokenizer(size, self.end, rows, self._tokenizer)  # a separator past the table forbids nothing


def read(folder: epath.Path, config: dict[str, Any]) -> Reader:
    """The tokenizer of a Hugging Face folder.

    Args:
      config: the content of its `config.json`.

    Raises:
      SbpError: there is none, or nothing says which token ends a text.
    """
    tokenizer = text_tokenizer.read(folder / TOKENIZER)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG):  # the second one counts where both say something
        if (folder / name).exists():
            said |= {key: value for key, value in json.loads((folder / name).read_text()).items() if value is not None}

    def token(name: str) -> int | None:
        text = said.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text is not None:
            return tokenizer.token_to_id(text)
        number = config.get(f"{name}_token_id") if not said else None
        return number[0] if isinstance(number, list) and number else number if isinstance(number, int) else None

    end, begin = token("eos"), token("bos")
    if end is None:
        raise SbpError(
            f"nothing in {folder} says which token ends a text; name it as eos_token in {TOKENIZER_CONFIG} there"
        )
    return Reader(end if begin is None else begin, end, tokenizer)
