"""Runs llama.cpp for the tests, in a Python of its own that has llama_cpp: one JSON request in, arrays out.

The request names a GGUF file and, optionally, `windows` of ids
(logits of every position of each are wanted), `texts` (their tokens are
wanted) and `prompt` (ids to go on from, greedily, `num_new` times).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    windows = request.get("windows", ())
    model = llama_cpp.Llama(
        request["file"],
        n_ctx=256,
        n_batch=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=bool(windows),
        vocab_only=bool(request.get("vocab_only")),
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,  # the cache would be float16 otherwise, whatever the file is
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    answer: dict[str, Any] = {"version": llama_cpp.__version__}
    texts = request.get("texts", ())
    answer["tokens"] = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    answer["plain"] = [model.detokenize(tokens).decode() for tokens in answer["tokens"]]
    logits = []
    for ids in windows:
        model.reset()
        model.eval(ids)
        logits.append(model.scores[: len(ids)].astype(np.float32))
    if windows:
        np.save(request["logits"], np.stack(logits))
    if request.get("prompt"):
        model.reset()
        generated = []
        for token in model.generate(request["prompt"], temp=0.0, top_k=1, repeat_penalty=1.0):
            generated.append(token)
            if len(generated) == request["num_new"]:
                break
        answer["generated"] = generated
    print(json.dumps(answer))


main()
