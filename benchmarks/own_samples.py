"""Let a model write samples of its own, as calibration and held-out text for models without a public corpus.

    python benchmarks/own_samples.py MODEL OUT_FOLDER --num 512 --seed 0

writes OUT_FOLDER/calibration.jsonl and OUT_FOLDER/heldout.jsonl, half the samples each. Sampling is at temperature 1
from the beginning-of-sequence token until the end-of-sequence token or the model's context is full.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts: list[str] = []
    while len(texts) < args.num:
        start = torch.full((args.batch, 1), model.config.bos_token_id)
        ids = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_length=model.config.max_position_embeddings,
            pad_token_id=model.config.eos_token_id,
        )
        texts += [text for text in tokenizer.batch_decode(ids, skip_special_tokens=True) if len(text) > 64]
    args.out.mkdir(parents=True, exist_ok=True)
    half = args.num // 2
    for name, part in (("calibration", texts[:half]), ("heldout", texts[half : args.num])):
        lines = [json.dumps({"text": text, "domain": "own samples"}) for text in part]
        (args.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(part)} samples")


if __name__ == "__main__":
    main()
