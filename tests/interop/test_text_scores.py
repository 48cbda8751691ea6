"""Scores of a text set are those that transformers gives for the exported model, by its own sliding window."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from sbp_jax.artifacts import parquet
from tests.test_text_sets import expected, make, records, scored

CONTEXT = 32


@pytest.mark.parametrize("stride", [8, CONTEXT])
def test_every_document_has_the_loss_of_transformers(tmp_path, stride):
    """Guards the whole way from a record to its nats; nothing of ours is in the other computation but the files."""
    made = make(tmp_path, stride)
    rows = parquet.read(scored(tmp_path, made)).to_pylist()
    folder = str(made["trained"].folder("final"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(made["tokenizer"].file("tokenizer.json")))
    end = tokenizer.token_to_id("<|endoftext|>")
    for row, text in zip(rows, expected(records()), strict=True):
        ids = [end, *tokenizer.encode(text, add_special_tokens=False).ids, end]
        nats, scored_until = 0.0, 0
        for begin in range(0, len(ids) - 1, stride):
            stop = min(begin + CONTEXT, len(ids) - 1)
            with torch.no_grad():
                logits = model(torch.tensor([ids[begin:stop]])).logits[0, :, : tokenizer.get_vocab_size()]
            found = torch.log_softmax(logits, -1)[range(stop - begin), ids[begin + 1 : stop + 1]]
            nats -= found[scored_until - begin :].double().sum().item()
            scored_until = stop
            if stop == len(ids) - 1:
                break
        assert (row["targets"], row["bytes"]) == (len(ids) - 1, len(text.encode()))
        assert row["nats"] == pytest.approx(nats, rel=2e-5)
