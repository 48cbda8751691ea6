"""The paper's first scale with the text sets on which it gives perplexity: OpenWebText2, LAMBADA and MMLU.

For those who have the files: put them where the paths say, or name others with
`--set evaluation.texts.openwebtext2.paths=...`. How a record becomes text is ours; the paper does not say.
"""

from dataclasses import replace

import paper_200b_3b

from sbp_jax.config import Evaluation, Experiment, TextSet

TEXTS = (
    TextSet("openwebtext2", ("evals/openwebtext2/*.jsonl.zst",)),  # {"text": ...}, a held-out part
    TextSet("lambada", ("evals/lambada_test.jsonl",)),  # {"text": ...}; {context} {continuation} for a set in two parts
    TextSet("mmlu", ("evals/mmlu/test.parquet",), "{question}\n{choices[answer]}"),  # `answer` is a place in `choices`
)


def get_config() -> Experiment:
    return replace(
        paper_200b_3b.get_config(),
        name="paper_texts",
        evaluation=Evaluation(texts=TEXTS, stride=2048),  # ours: a target sees at least half of the context
    )


def tiny() -> Experiment:
    return paper_200b_3b.tiny()
