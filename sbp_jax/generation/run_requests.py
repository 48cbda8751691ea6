"""What a run asks its engines for: the prompts of its documents by their numbers, and the model that reads them."""

from typing import Any

import numpy as np
from etils import epath

from sbp_jax.artifacts import Artifact, arrayrecord
from sbp_jax.config import Synthesis
from sbp_jax.data.groups import Partners, reading
from sbp_jax.data.schedule import Schedule
from sbp_jax.data.splits import members
from sbp_jax.errors import SbpError
from sbp_jax.generation.requests import Request, Sampling
from sbp_jax.model import huggingface
from sbp_jax.text.template import prompt
from sbp_jax.text.tokenizer import TextTokenizer

LEAST_ROOM = 32  # new tokens that must fit behind a prompt


class RunRequests:
    """The requests of a run by their numbers; without `condition` nothing is read before a document is written.

    Attributes:
      seeds: ordinals of the documents that are read.
      left_out: how many of the capped documents are none of them, by reason.
    """

    def __init__(self, synthesis: Synthesis, tokenizer: TextTokenizer, tokens: Artifact, context: int):
        self._synthesis, self.tokenizer, self._context = synthesis, tokenizer, context
        self._records = arrayrecord.source(tokens)
        self._sampling = Sampling(synthesis.temperature, synthesis.top_p, synthesis.top_k)
        self.seeds, self.left_out = np.empty(0, np.int64), {"seeds_too_long": 0, "seeds_empty": 0}
        self.partners: Partners | None = None

    def condition(self, splits: Artifact, pairs: Artifact, conditioning: int, label: str) -> None:
        """Has documents read before others are written: capped ones that leave room to write, and their partners.

        Raises:
          SbpError: none of them leaves room.
        """
        capped = members(splits, "capped")
        lengths = np.array([len(self._records[ordinal]) // 4 for ordinal in capped.tolist()], np.int64)
        fits = lengths + 2 + LEAST_ROOM <= self._context
        self.seeds = capped[fits & (lengths > 0)]
        self.left_out["seeds_too_long"] = int(np.count_nonzero(~fits))
        self.left_out["seeds_empty"] = int(np.count_nonzero(lengths == 0))
        if len(self.seeds) == 0:
            raise SbpError(
                f"{label}: none of the {len(capped):,} capped documents leaves room for {LEAST_ROOM} new tokens"
                f" in a context of {self._context}; raise tuning.context"
            )
        self._schedule = Schedule(self.seeds, self._synthesis.samples, self._synthesis.seed)
        self.partners = Partners(pairs, conditioning)

    def request(self, number: int) -> Request:
        end, separator = self.tokenizer.end_of_document, self.tokenizer.separator
        if self.partners is None:
            tokens = prompt([], end, separator)
            return Request(number, -1 - number, 0, tokens, self._limit(tokens), self._sampling)
        seed, sample = self._schedule.request(number)
        read = [self._tokens(ordinal) for ordinal in self.read(seed, sample)]
        tokens = prompt(read, end, separator)
        return Request(number, seed, sample, tokens, self._limit(tokens), self._sampling)

    def read(self, seed: int, sample: int) -> list[int]:
        """Ordinals of the documents that are read for one sample of a seed, in their order."""
        assert self.partners is not None
        further = self.partners.of(seed, sample)
        room = self._context - self._synthesis.max_new_tokens - len(self._tokens(seed)) - 2
        return reading(seed, further, [len(self._tokens(ordinal)) for ordinal in further], room)

    def prompt_tokens(self, read: list[int]) -> int:
        """Tokens of the prompt that has these documents."""
        return 1 + sum(len(self._tokens(ordinal)) + 1 for ordinal in read)

    def _tokens(self, ordinal: int) -> np.ndarray:
        return np.frombuffer(self._records[ordinal], "<i4")

    def _limit(self, tokens: np.ndarray) -> int:
        return min(self._synthesis.max_new_tokens, self._context - len(tokens))

    def lineage(self, request: Request) -> dict[str, Any]:
        """What a document is made from, and how."""
        seed = request.ordinal if self.partners is not None else None
        return {
            "seed": seed,
            "conditioning": [] if seed is None else self.read(seed, request.sample),
            "similarity": None if seed is None or self.partners is None else self.partners.similarity(seed),
            "sample": request.sample,
            "key": f"{self._synthesis.seed}:{request.ordinal}:{request.sample}",
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k,
            "max_new_tokens": request.limit,
        }


def model_folder(model: Artifact, tokenizer: Artifact, conditioned: bool) -> epath.Path:
    """The folder of the model, once it is one that can do what is asked.

    Raises:
      SbpError: a model that reads documents without having been tuned to, or of another tokenizer.
    """
    if conditioned and model.recipe.get("stage") != "tune":
        raise SbpError(
            f"{model.path} was trained by {model.recipe.get('stage')}, not tuned on pairs: it does not know what the"
            " separator means; generate with the model of stage tune"
        )
    folder = model.folder("best")
    theirs = folder / huggingface.TOKENIZER
    if theirs.exists() and theirs.read_bytes() != tokenizer.file("tokenizer.json").read_bytes():
        raise SbpError(f"{theirs} is not the tokenizer of this run; use the tokenizer of the model")
    return folder
