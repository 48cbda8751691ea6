"""Memory of MaxText's own ahead-of-time compile of the 3B model of configs/paper_200b_3b.py on 64 chips of v5p.

.venv-peers/maxtext/bin/python benchmarks/peers/maxtext_aot.py
"""

import contextlib
import io
import json
import os
import re

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5p-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3"}

from maxtext.trainers.pre_train import train_compile  # noqa: E402  (reads the environment)
from maxtext_settings import settings  # noqa: E402
from shapes import PAPER_3B  # noqa: E402
from stopwatch import versions  # noqa: E402

TOPOLOGY = "v5p-128"  # named by its cores: 64 chips


def main() -> None:
    arguments = settings(PAPER_3B, dtype="bfloat16", remat="full", attention="flash", hardware="tpu")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        train_compile.main([*arguments, f"compile_topology={TOPOLOGY}", "compile_topology_num_slices=1"])
    sizes = r"(?<![a-z_])(argument|output|alias|temp|generated_code)_size_in_bytes=(\d+)"  # not those of the host
    found = dict(re.findall(sizes, printed.getvalue()))
    line = {f"{name}_bytes": int(size) for name, size in found.items()}
    print(json.dumps(line | {"versions": versions(("maxtext", "jax", "libtpu"))}))


if __name__ == "__main__":
    main()
