"""Which kernel llama.cpp is in while it reads a prompt, sampled from outside.

    python benchmarks/llamacpp_kernels.py out/gguf/dense-f16.gguf out/gguf/sparse-38-50-f16.gguf \
        --engine-python env-llama/bin/python

makes each model read 512 random tokens again and again on one thread, looks at the native stack of that process with
py-spy (`pip install py-spy`) and prints how often each kernel was found. `benchmarks/random_gguf.py` makes such files.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections import Counter

READER = """
import random, sys, llama_cpp
options = dict(n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
model = llama_cpp.Llama(sys.argv[1], **options)
tokens = [random.randrange(1000) for _ in range(512)]
print("ready", flush=True)
while True:
    model.reset()
    model.eval(tokens)
"""
KERNELS = re.compile(r"llamafile_sgemm|ggml_vec_dot_\w+|ggml_gem[mv]_\w+|ggml_compute_forward_(?!mul_mat)\w+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="GGUF files.")
    parser.add_argument("--engine-python", required=True, help="The Python that has llama-cpp-python.")
    parser.add_argument("--samples", type=int, default=24)
    args = parser.parse_args()
    for model in args.models:
        found = _sampled([args.engine_python, "-c", READER, model], args.samples)
        print(f"{model}: " + ", ".join(f"{name} {count}" for name, count in found.most_common()))


def _sampled(command: list[str], count: int) -> Counter[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            reader.stdout.readline()
            return Counter(_kernel(reader.pid) for _ in range(count))
        finally:
            reader.kill()


def _kernel(pid: int) -> str:
    time.sleep(0.3)
    stack = subprocess.run(
        ["py-spy", "dump", "--native", "--pid", str(pid)], capture_output=True, text=True, check=True
    )
    found = KERNELS.search(stack.stdout)
    return found.group() if found else "other"


if __name__ == "__main__":
    main()
