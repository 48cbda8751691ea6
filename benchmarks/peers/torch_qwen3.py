"""Training steps of the 15.7M Qwen3 of transformers in eager PyTorch, on two threads of a CPU.

    .venv-peers/torch/bin/python benchmarks/peers/torch_qwen3.py [--dtype bfloat16 --steps 5]

bfloat16 is PyTorch's autocast, the weights staying float32.
"""

import argparse

import shapes
import torch
from stopwatch import measure
from transformers import Qwen3Config, Qwen3ForCausalLM

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    shape = shapes.QWEN3_16M
    config = Qwen3Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=shape["context"],
        rope_parameters={"rope_type": "default", "rope_theta": shapes.ROPE_BASE},
        rms_norm_eps=shapes.NORM_EPSILON,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",  # with no mask given it knows that the attention is causal and skips the idle half
    )
    model = Qwen3ForCausalLM(config).train()
    betas = (shapes.BETA1, shapes.BETA2)
    adamw = torch.optim.AdamW(
        model.parameters(), shapes.LEARNING_RATE, betas, weight_decay=shapes.WEIGHT_DECAY, fused=True
    )
    rows = torch.from_numpy(shapes.rows(shape)).long()
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            logits = model(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), shapes.CLIP)
        adamw.step()
        adamw.zero_grad()
        return loss.item()

    measure(step, shape["rows"] * shape["context"], options.steps, ("torch", "transformers"))


if __name__ == "__main__":
    main()
