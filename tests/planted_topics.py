"""A corpus of planted topics: a document's words are those of its topic, and related documents have one topic.

What is read before a document tells its topic, so a model that has learned to look saves bits by it.
"""

import json
from pathlib import Path

import numpy as np

DOCUMENTS, TOPICS, WORDS = 240, 6, 10  # words that a topic has for itself

CONFIG = """
from sbp_jax.config import *

def get_config():
    return Experiment(
        name="planted",
        corpus=Corpus(paths=("{folder}/documents.jsonl",)),
        splits=Splits(validation=0.05, test=0.05, capped=1.0),
        tokenizer=Tokenizer(vocab_size=400),
        model=Model(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64),
        training=Training(context=64, batch_rows=8, tokens=64 * 8 * 24, peak_lr=1e-2, evaluate_every=100),
        embedding=Embedding(vectors="{folder}/vectors.npy"),
        neighbors=Neighbors("exact", top_k=4),
        pairs=Pairs(threshold=0.5, minimum=10),
        tuning=Tuning(context=128, batch_rows=8, epochs=2.0, peak_lr=1e-2, evaluate_every=100, validation=0.15),
        synthesis=Synthesis(max_new_tokens=24, oversample=1.2, documents_per_shard=16, temperature=0.9, top_p=0.8),
        filters=Filters(unfinished="keep", min_words=6, max_repetition=0.4, near_sibling=0.9, near_duplicate=0.9),
        arms=(
            Arm("repetition"),
            Arm("sbp", synthetic_share=0.05),
            Arm("self", synthetic_share=0.05, pairs="none"),
            Arm("oracle", real="oracle"),
        ),
        execution=Execution(slots=8, decode_steps=8, tensorboard=False),
    )
"""


def plant(folder: Path) -> Path:
    """Writes the corpus, its vectors and the config, whose path is returned."""
    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(random.choice(letters, 5)) for _ in range(TOPICS * WORDS)]
    topics = random.integers(0, TOPICS, DOCUMENTS)
    with (folder / "documents.jsonl").open("w") as stream:
        for number, topic in enumerate(topics.tolist()):
            own = words[topic * WORDS : (topic + 1) * WORDS]
            text = " ".join(random.choice(own, int(random.integers(8, 18))))
            stream.write(json.dumps({"id": f"doc-{number}", "source": "here", "text": text}) + "\n")
    vectors = np.eye(TOPICS + 8)[topics]
    vectors[:, TOPICS:] = random.normal(size=(DOCUMENTS, 8)) * random.uniform(0.05, 0.3, (DOCUMENTS, 1))
    np.save(folder / "vectors.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    (folder / "planted.py").write_text(CONFIG.format(folder=folder))
    return folder / "planted.py"
