"""Train a dense Llama on text at hand for some minutes, so that methods can be compared at a larger width.

    python benchmarks/train_dense.py TEXT.jsonl... OUT --minutes 4 --device cuda

reads files of {"domain", "text"} rows, holds some documents of every domain back, and trains on the others with the
tokenizer of the model that ships. OUT gets the model (bfloat16), `calibration.jsonl` (documents that it was trained
on), `joined.jsonl` (the same, those of a domain joined until they fill a sequence), `heldout.jsonl` (documents that it
was not trained on) and `training.json` (what was done). The learning rate follows the clock, so a faster machine trains
on more tokens: quality is that of the machine, the comparison on it is fair all the same.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from expertweaver.assets import shipped_model

LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, MAX_NORM = 1e-3, 100, 0.1, 1.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    args = _parse()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True)
    documents = _read(args.texts)
    if short := sorted(domain for domain, texts in documents.items() if len(texts) <= args.hold_out):
        raise SystemExit(f"domains of no more than --hold-out {args.hold_out} documents: {', '.join(short)}")
    heldout = {domain: texts[: args.hold_out] for domain, texts in documents.items()}
    training = {domain: texts[args.hold_out :] for domain, texts in documents.items()}
    _save(args.out / "heldout.jsonl", heldout)
    calibration = {domain: texts[: args.calibrate] for domain, texts in training.items()}
    _save(args.out / "calibration.jsonl", calibration)
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    joined = {domain: _joined(tokenizer, texts, args.length) for domain, texts in calibration.items()}
    _save(args.out / "joined.jsonl", joined)
    stream = _tokens(tokenizer, [text for texts in training.values() for text in texts])
    judged = _tokens(tokenizer, [text for texts in heldout.values() for text in texts])
    model: Any = LlamaForCausalLM(_config(args, tokenizer)).to(args.device)
    facts = _train(model, stream, args)
    heldout_nats = _loss(model, judged, args)
    model.to(torch.bfloat16).save_pretrained(args.out)
    facts |= {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_of_text": len(stream),
        "documents": {domain: len(texts) for domain, texts in training.items()},
        "heldout_nats": heldout_nats,
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "options": {name: str(value) for name, value in vars(args).items() if name != "texts"},
    }
    for name in TOKENIZER_FILES:
        shutil.copyfile(shipped_model() / name, args.out / name)
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, help="Files of {domain, text} rows.")
    parser.add_argument("out", type=Path, help="The folder to create.")
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--intermediate-size", type=int, default=4864)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=64, help="Sequences of a step.")
    parser.add_argument("--length", type=int, default=512, help="Tokens of a sequence.")
    parser.add_argument("--hold-out", type=int, default=24, help="Documents of every domain that are not trained on.")
    parser.add_argument("--calibrate", type=int, default=400, help="Documents of every domain to calibrate on.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _read(files: list[Path]) -> dict[str, list[str]]:
    """Texts by domain, shuffled."""
    documents: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        for line in file.read_text("utf-8").split("\n"):
            if not line:
                continue
            row = json.loads(line)
            documents[row["domain"]].append(row["text"])
    for texts in documents.values():
        random.shuffle(texts)
    return dict(documents)


def _save(file: Path, documents: dict[str, list[str]]) -> None:
    rows = ({"domain": domain, "text": text} for domain, texts in documents.items() for text in texts)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _joined(tokenizer: Any, texts: list[str], length: int) -> list[str]:
    """Texts one after the other, an empty line between them, in documents of at least `length` tokens but the last."""
    documents: list[list[str]] = [[]]
    room = length
    for text in texts:
        documents[-1].append(text)
        room -= len(_tokens(tokenizer, [text]))
        if room <= 0:
            documents.append([])
            room = length
    return ["\n\n".join(parts) for parts in documents if parts]


def _tokens(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """All texts in one row, an end token after each, [N] int64."""
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in ids for token in (*row, tokenizer.eos_token_id)])


def _config(args: argparse.Namespace, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(1, args.hidden_size // 448),
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(model: LlamaForCausalLM, stream: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Train until the time is up; the learning rate warms up by steps and falls by a half cosine of the time."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    start, steps, last = time.monotonic(), 0, None
    while (spent := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        rate = LEARNING_RATE * min(1.0, (steps + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step_loss(model, _batch(stream, args))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % 100 == 0:
            last = loss.item()
            print(f"{spent:4.0%}  step {steps}  {last:.3f} nats", flush=True)
    tokens = steps * args.batch * args.length
    return {"steps": steps, "tokens_seen": tokens, "epochs": tokens / len(stream), "last_training_nats": last}


def _batch(stream: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    starts = torch.randint(len(stream) - args.length, (args.batch, 1))
    return stream[starts + torch.arange(args.length)].to(args.device)


def _step_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.inference_mode()
def _loss(model: LlamaForCausalLM, stream: torch.Tensor, args: argparse.Namespace) -> float:
    """Nats per token on a stream, cut into windows; the last one may be shorter."""
    total = 0.0
    for window in stream.split(args.length):
        total += _step_loss(model.eval(), window[None].to(args.device)).item() * (len(window) - 1)
    return total / sum(len(window) - 1 for window in stream.split(args.length))


if __name__ == "__main__":
    main()
