"""A decoder behind the interface of lm-eval, so that every task of the harness runs on it unchanged.

Where a context ends and its continuation begins, what an empty context is, and what is cut where a text is too long are
as in the harness's Hugging Face backend (`lm_eval.models.huggingface.HFLM`), whose scores these are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from etils import epath
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from sbp_jax.config import Execution, Model
from sbp_jax.errors import SbpError
from sbp_jax.generation.requests import Sampling
from sbp_jax.model import checkpoint_config, huggingface
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.progress import Counter, progress
from sbp_jax.tasks import reader, writing
from sbp_jax.tasks.likelihood import Likelihood

NEW_TOKENS = 256  # to write at most where a task does not say; less where the model's context is short
HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "early_stopping": False, "repetition_penalty": 1.0}
WRITTEN = ("until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks")  # what is asked of generation


class DecoderLM(TemplateLM):
    """A model in a Hugging Face folder.

    Attributes:
      cut: prompts so far that had to be cut from the left.
    """

    def __init__(self, folder: str, execution: Execution | None = None, dtype: str = "float32"):
        """Reads the model; its weights go to where they belong on the mesh.

        Args:
          execution: mesh, and slots of generation; None: the defaults.
          dtype: of activations, float32 or bfloat16.

        Raises:
          SbpError: the folder holds no model with a tokenizer that can be read.
        """
        super().__init__()
        self._folder, self._execution = epath.Path(folder).expanduser(), execution or Execution()
        checkpoint = huggingface.inspect(self._folder)
        self._model: Model = replace(checkpoint.model, dtype=dtype)
        self._rows, self.max_length = checkpoint.vocabulary, checkpoint.context
        self.reader = reader.read(self._folder, checkpoint_config.read(self._folder))
        mesh = build_mesh(self._execution.mesh)
        parameters = huggingface.load(self._folder, self._model, self._rows, mesh)
        self._likelihood = Likelihood(self._model, self._rows, parameters, mesh, self.max_length)
        self._written_cut = 0

    @property
    def cut(self) -> int:
        return self._likelihood.cut + self._written_cut

    @property
    def eot_token_id(self) -> int:
        return self.reader.end

    @property
    def prefix_token_id(self) -> int:
        return self.reader.prefix

    @property
    def max_gen_toks(self) -> int:
        return min(NEW_TOKENS, self.max_length // 2)

    @property
    def tokenizer_name(self) -> str:
        return str(self._folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.reader.encode([string], add_special_tokens)[0]

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.reader.decode(tokens, skip_special_tokens)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        raise SbpError("these are base models, which have no chat template; ask without apply_chat_template")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As of the base class, all texts being read together."""
        texts = [request.args for request in requests]
        pairs = [_parted(*text) for text in texts if text[0]]
        wholes = iter(self.reader.encode([context + continuation for context, continuation in pairs]))
        contexts = dict(zip(names := sorted({pair[0] for pair in pairs}), self.reader.encode(names), strict=True))
        bare = iter(self.reader.encode([text[1] for text in texts if not text[0]], special=False))
        split = []
        for context, continuation in texts:
            if context:
                whole, read = next(wholes), contexts[_parted(context, continuation)[0]]
                read, written = read, whole[len(read) :]
            else:
                read, written = [self.prefix_token_id], next(bare)
                if written[:1] == read:
                    written = written[1:]
            if not written or not read:
                raise SbpError(f"the continuation {continuation!r} of {context[-60:]!r} has no token to be scored")
            split.append(((context, continuation), read, written))
        return self._loglikelihood_tokens(split, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        targets = sum(len(written) for _, _, written in requests)
        with _progress("scoring", targets, "tokens", disable_tqdm) as counter:
            scores, greedy = self._likelihood([request[1:] for request in requests], counter.advance)
        answers = [(float(score), bool(best)) for score, best in zip(scores, greedy, strict=True)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in windows that do not overlap, but for the token before each."""
        windows: list[Any] = []
        owners = []
        for number, tokens in enumerate(self.reader.encode([request.args[0] for request in requests])):
            for window in utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first stop string, greedily or sampled.

        Raises:
          SbpError: generation is asked for in a way that there is none here, or for more tokens than the model reads.
        """
        asked, stops = [], []
        prompts = self.reader.encode([request.args[0] for request in requests])
        end = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        for request, prompt in zip(requests, prompts, strict=True):
            settings: dict[str, Any] = dict(normalize_gen_kwargs(request.args[1], self.max_gen_toks))
            limit, room = settings["max_gen_toks"], self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise SbpError(
                    f"{limit} tokens are to be written, and the model reads {self.max_length} with the prompt; leave"
                    " out the task, or take a model with a longer context"
                )
            sampling = _sampling(settings)
            stops.append(handle_stop_sequences(list(settings["until"]), eos=end))
            self._written_cut += len(prompt) > room
            asked.append(writing.Asked(prompt[-room:] or [self.prefix_token_id], limit, sampling, tuple(stops[-1])))
        with _progress("writing", len(asked), "answers", disable_tqdm) as counter:
            execution = replace(self._execution, engine="jax")
            texts = writing.write(self._folder, self._model, self._rows, self.reader, execution, asked, counter.advance)
        answers = [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers


def _parted(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to its continuation, whose first token holds them."""
    read = context.rstrip()
    return read, context[len(read) :] + continuation


def _sampling(settings: dict[str, Any]) -> Sampling:
    unknown = {
        name: value
        for name, value in settings.items()
        if name not in WRITTEN and value is not None and HARMLESS.get(name, ...) != value
    }
    if unknown:
        raise SbpError(
            f"the task asks for generation with {', '.join(f'{name}={value}' for name, value in unknown.items())},"
            f" which there is not here; {', '.join(WRITTEN)} are"
        )
    if not settings["do_sample"]:
        return Sampling(0.0)
    return Sampling(
        float(settings.get("temperature", 1.0)), float(settings.get("top_p") or 1.0), int(settings.get("top_k") or 0)
    )


@contextmanager
def _progress(label: str, total: int, unit: str, quiet: bool) -> Iterator[Counter]:
    if quiet:
        yield Counter(label, total, unit, None)
        return
    with progress(label, total, unit) as counter:
        yield counter
