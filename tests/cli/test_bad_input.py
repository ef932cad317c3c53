"""Models that cannot be converted: each is refused in four parts, with its exit code, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Bench, Case, Complaint, check_refused
from support.models import (
    BODY_SHARD,
    CONFIG,
    HEAD_SHARD,
    INDEX,
    WEIGHTS,
    edit_config,
    edit_index,
    edit_json,
    edit_tensors,
    read_tensor,
    split_shards,
)

HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DAMAGED = "Copy or download the model again"
REPAIR = "Repair the config.json"
ARCHITECTURE = "ArchitectureError"
Spoil = Callable[[Bench], Any]


def config(**changes: Any) -> Spoil:
    """Set keys of config.json."""
    return lambda bench: edit_config(bench.source, **changes)


def config_text(text: str) -> Spoil:
    return lambda bench: (bench.source / CONFIG).write_text(text, encoding="utf-8")


def weights(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the weight file."""
    return lambda bench: (bench.source / WEIGHTS).write_bytes(change((bench.source / WEIGHTS).read_bytes()))


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Spoil:
    """Replace one tensor by what a function makes of it."""
    return lambda bench: edit_tensors(bench.source, {name: change(read_tensor(bench.source, name))})


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Put one value into a tensor."""
    return lambda tensor: tensor.clone().index_put_((torch.tensor(3),), torch.tensor(value))


def index(**changes: Any) -> Spoil:
    """Divide the model into two shards and change what the index says of the output head."""
    return sharded(lambda folder: edit_index(folder, {HEAD: changes["head"]}))


def sharded(change: Callable[[Path], Any]) -> Spoil:
    """Divide the model into two shards, then change the folder."""

    def spoil(bench: Bench) -> None:
        split_shards(bench.source)
        change(bench.source)

    return spoil


def replace_by_file(bench: Bench) -> None:
    shutil.rmtree(bench.source)
    bench.source.write_text("a file", encoding="utf-8")


def absolute_path(bench: Bench) -> None:
    split_shards(bench.source)
    edit_index(bench.source, {HEAD: str(bench.source / HEAD_SHARD)})


def link_out(bench: Bench) -> None:
    split_shards(bench.source)
    outside = (bench.source / HEAD_SHARD).rename(bench.folder / "outside.safetensors")
    (bench.source / HEAD_SHARD).symlink_to(outside)


def store_twice(folder: Path) -> None:
    head = load_file(folder / HEAD_SHARD)
    save_file({**head, DOWN: load_file(folder / BODY_SHARD)[DOWN]}, folder / HEAD_SHARD)


def pickle_only(bench: Bench) -> None:
    torch.save(load_file(bench.source / WEIGHTS), bench.source / "pytorch_model.bin")
    (bench.source / WEIGHTS).unlink()


def biased_attention(bench: Bench) -> None:
    edit_config(bench.source, attention_bias=True)
    rows = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}
    names = {f"model.layers.{layer}.self_attn.{name}.bias": n for layer in range(2) for name, n in rows.items()}
    edit_tensors(bench.source, {name: torch.zeros(n) for name, n in names.items()})


def window_in_some_layers(bench: Bench) -> None:
    rows = {"q_proj": 32, "k_proj": 16, "v_proj": 16}
    names = {f"model.layers.{layer}.self_attn.{name}.bias": n for layer in range(2) for name, n in rows.items()}
    edit_tensors(bench.source, {name: torch.zeros(n) for name, n in names.items()})
    edit_config(bench.source, model_type="qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1)


def remove_tokenizer(bench: Bench) -> None:
    for file in bench.source.glob("tokenizer*"):
        file.unlink()


def vocabulary_of(size: int) -> Spoil:
    """Cut the model's vocabulary, but not the tokenizer's."""

    def spoil(bench: Bench) -> None:
        edit_config(bench.source, vocab_size=size)
        edit_tensors(bench.source, {name: read_tensor(bench.source, name)[:size] for name in (HEAD, EMBEDDINGS)})

    return spoil


def refused_type(model_type: str, reason: str) -> Case:
    words = Complaint(CONFIG, "llama (Llama 2 and 3.x", f"'{model_type}'{reason}", "one of these families")
    return Case(model_type, words, config(model_type=model_type), error=ARCHITECTURE)


def refused_size(name: str, value: Any, limit: str) -> Case:
    words = Complaint(f"{CONFIG}: {name}", f"from 1 to {limit}", repr(value), REPAIR)
    return Case(f"{name} {value}", words, config(**{name: value}), error=ARCHITECTURE)


def not_finite(name: str, value: float) -> Case:
    words = Complaint(f"{WEIGHTS}: {name}", "finite weights", "NaN or infinite", DAMAGED)
    return Case(f"{value} in {name}", words, tensor(name, with_value(value)), planned=False)


PATHS = (
    Case(
        "missing path",
        Complaint("dense", "a model folder, or a hub id", "nothing at this path", "Check the spelling"),
        lambda bench: shutil.rmtree(bench.source),
    ),
    Case(
        "path is a file",
        Complaint("dense", "a model folder", "a file", "Give the folder that holds config.json"),
        replace_by_file,
    ),
)

CONFIGS = (
    Case(
        "no config.json",
        Complaint(CONFIG, "a model's config.json", "No such file", "save_pretrained"),
        lambda bench: (bench.source / CONFIG).unlink(),
    ),
    Case("config.json not JSON", Complaint(CONFIG, "config.json", "line 1 column 2", "Give"), config_text("{")),
    Case("config.json a list", Complaint(CONFIG, "a JSON object", "list", "save_pretrained"), config_text("[1]")),
    Case("config.json too deep", Complaint(CONFIG, "config.json", "recursion", "Give"), config_text("[" * 100_000)),
    Case(
        "config.json with a word for a number",
        Complaint(CONFIG, "a valid configuration", "intermediate_size", REPAIR),
        config(intermediate_size="many"),
    ),
    refused_size("num_hidden_layers", 10**9, "4096"),
    refused_size("num_hidden_layers", 0, "4096"),
    refused_size("num_hidden_layers", "two", "4096"),
    refused_size("hidden_size", 10**30, "2147483648"),
    refused_size("intermediate_size", -64, "2147483648"),
    refused_size("num_key_value_heads", 0, "2147483648"),
    refused_size("head_dim", 0, "2147483648"),
    Case(
        "absurd sizes, all of them",
        (
            Complaint(f"{CONFIG}: hidden_size", "from 1", "-32", REPAIR),
            Complaint(f"{CONFIG}: intermediate_size", "from 1", "0", REPAIR),
        ),
        config(hidden_size=-32, intermediate_size=0, head_dim=8),
        error=ARCHITECTURE,
    ),
    Case(
        "key-value heads that do not divide",
        Complaint(CONFIG, "a multiple of key-value heads", "4 query and 3 key-value heads", REPAIR),
        config(num_key_value_heads=3),
        error=ARCHITECTURE,
    ),
)

KINDS = (
    refused_type("gpt2", ", which is not convertible: its FFN is not gated"),
    refused_type("smollm3", ", which is not convertible: some of its layers have no rotary positions"),
    refused_type("mixtral", ", which is not convertible: it is a Mixture-of-Experts already"),
    refused_type("gemma3", ", which is not convertible: it sees pictures too"),
    refused_type("made_up", ""),
    Case(
        "quantised",
        Complaint(CONFIG, "unquantised weights", "a quantization_config", "Convert the unquantised model"),
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        error=ARCHITECTURE,
    ),
    Case(
        "sliding window",
        Complaint("dense", "full attention", "a sliding window of 16 in a context of 128", "--format auto"),
        config(model_type="mistral", sliding_window=16),
        error=ARCHITECTURE,
    ),
    Case(
        "sliding window in some layers",
        Complaint("dense", "full attention", "a sliding window of 16 in a context of 128", "--format auto"),
        window_in_some_layers,
        error=ARCHITECTURE,
    ),
    Case(
        "unsupported rope",
        Complaint(CONFIG, "default, linear, llama3, yarn for llama", "'dynamic'", "not supported yet"),
        config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        error=ARCHITECTURE,
    ),
    Case(
        "rope base not a number",
        Complaint(f"{CONFIG}: rope_parameters.rope_theta", "a positive number", "'far'", REPAIR),
        config(rope_parameters={"rope_type": "default", "rope_theta": "far"}),
        error=ARCHITECTURE,
    ),
    Case(
        "hidden_act gelu",
        Complaint("dense", "hidden_act silu", "'gelu'", "hard-code their activation for glm4_moe"),
        config(hidden_act="gelu"),
        error=ARCHITECTURE,
    ),
    Case(
        "bias on o_proj",
        Complaint("dense", "attention biases that glm4_moe has (k, q, v)", "self_attn.o_proj.bias", "--format auto"),
        biased_attention,
        error=ARCHITECTURE,
    ),
)

FILES = (
    Case(
        "truncated shard",
        Complaint(WEIGHTS, "a complete safetensors file", "truncated or corrupt", DAMAGED),
        weights(lambda data: data[:-100]),
    ),
    Case("empty shard", Complaint(WEIGHTS, "complete", "header too small", DAMAGED), weights(lambda data: b"")),
    Case(
        "garbage header",
        Complaint(WEIGHTS, "complete", "header", DAMAGED),
        weights(lambda data: b"\xff" * 8 + data[8:]),
    ),
    Case("index with ..", Complaint(INDEX, "plain file names", "'../x'", "beside its index"), index(head="../x")),
    Case("index with a folder", Complaint(INDEX, "plain file names", "'a/x'", "beside its index"), index(head="a/x")),
    Case("index with an absolute path", Complaint(INDEX, "plain file names", "'/", "beside its index"), absolute_path),
    Case(
        "index without map",
        Complaint(INDEX, "'weight_map'", "KeyError", DAMAGED),
        sharded(lambda folder: (folder / INDEX).write_text("{}")),
    ),
    Case(
        "link that leaves the folder",
        Complaint(HEAD_SHARD, "a file inside the model folder", "outside.safetensors", "Put the file itself"),
        link_out,
    ),
    Case(
        "missing shard",
        Complaint(INDEX, f"the shard '{HEAD_SHARD}'", "no such file", DAMAGED),
        sharded(lambda folder: (folder / HEAD_SHARD).unlink()),
    ),
    Case(
        "index names the wrong shard", Complaint(INDEX, "in the shard it names", HEAD, DAMAGED), index(head=BODY_SHARD)
    ),
    Case(
        "index without an entry",
        Complaint(INDEX, "an entry for each", DOWN, DAMAGED),
        sharded(lambda folder: edit_index(folder, {DOWN: None})),
    ),
    Case(
        "tensor in two shards",
        Complaint(DOWN, "one tensor", f"{BODY_SHARD} and in {HEAD_SHARD}", DAMAGED),
        sharded(store_twice),
    ),
    Case("pickle", Complaint("dense", "safetensors weights", "only pytorch_model.bin", "can run code"), pickle_only),
    Case("no weights", Complaint("dense", WEIGHTS, "no weights", DAMAGED), lambda b: (b.source / WEIGHTS).unlink()),
    Case(
        "several shards without an index",
        Complaint("dense", INDEX, f"{BODY_SHARD}, {HEAD_SHARD} without an index", DAMAGED),
        sharded(lambda folder: (folder / INDEX).unlink()),
    ),
)

TENSORS = (
    not_finite(DOWN, float("nan")),
    not_finite(QUERY, float("inf")),
    not_finite(HEAD, float("-inf")),
    not_finite("model.norm.weight", float("nan")),
    Case(
        "missing tensor",
        Complaint("dense", "every tensor of a llama model", DOWN, DAMAGED),
        tensor(DOWN, lambda t: None),
    ),
    Case(
        "missing and unknown tensors, both named",
        (
            Complaint("dense", "every tensor", f"missing {DOWN}", DAMAGED),
            Complaint(
                "dense", "only tensors that the family 'llama' names", "also extra", "Nothing is dropped silently"
            ),
        ),
        lambda bench: edit_tensors(bench.source, {DOWN: None, "extra": torch.zeros(2)}),
    ),
    Case(
        "a layer more than the config says",
        Complaint("dense", "only tensors", "model.layers.1.", "add a rule"),
        config(num_hidden_layers=1),
    ),
    Case(
        "wrong shape",
        Complaint(f"{WEIGHTS}: {DOWN}", "shape [32, 64]", "[64, 32]", "different models"),
        tensor(DOWN, lambda t: t.T),
    ),
    Case(
        "integer weights",
        Complaint(f"{WEIGHTS}: {DOWN}", "type F32, BF16, F16", "I8", "unquantised"),
        tensor(DOWN, lambda t: t.to(torch.int8)),
    ),
    Case(
        "tied head that differs",
        Complaint("dense", "equal to the tensor it is tied to", f"'{HEAD}' of its own", "tie_word_embeddings to false"),
        config(tie_word_embeddings=True),
        planned=False,
    ),
)

TOKENIZERS = (
    Case("no tokenizer", Complaint("dense", "tokenizer.json", "none", "Copy the tokenizer files"), remove_tokenizer),
    Case(
        "tokenizer not JSON",
        Complaint("dense", "a tokenizer", "JSONDecodeError", "Copy the tokenizer files"),
        lambda bench: (bench.source / "tokenizer.json").write_text("garbage"),
        planned=False,
    ),
    Case(
        "tokenizer of something else",
        Complaint("dense", "a tokenizer", "KeyError", "Copy the tokenizer files"),
        lambda bench: (bench.source / "tokenizer.json").write_text("{}"),
        planned=False,
    ),
    Case(
        "tokenizer with ids beyond the vocabulary",
        Complaint("calibration text", "below the model's vocab_size 20", "the id ", "do not belong together"),
        vocabulary_of(20),
        error="CalibrationError",
        planned=False,
    ),
)

CASES = (*PATHS, *CONFIGS, *KINDS, *FILES, *TENSORS, *TOKENIZERS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_model_that_cannot_be_used_is_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


def test_the_bench_is_good_until_it_is_spoilt(bench: Bench) -> None:
    result = bench.convert()
    assert result.exit_code == 0, result.output
    assert bench.ours == [bench.out.name]


def test_every_reason_why_a_model_is_unsupported_is_told(bench: Bench) -> None:
    from expertweaver.registry import PACKAGE_FOLDER
    from expertweaver.yaml_file import read_yaml

    reasons = read_yaml(PACKAGE_FOLDER / "dense" / "unsupported.yaml")
    for model_type, reason in reasons.items():
        edit_json(bench.source / CONFIG, model_type=model_type)
        assert reason in bench.convert().stderr


def test_a_layer_without_any_gate_is_converted_and_runs_the_same_experts_for_every_token(bench: Bench) -> None:
    """Nothing tells the experts apart, so the lower ids run: in every engine, not as each breaks its ties."""
    names = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in range(2)]
    edit_tensors(bench.source, {name: torch.zeros(64, 32) for name in names})
    assert bench.convert().exit_code == 0
    shard = load_file(sorted(bench.out.glob("*.safetensors"))[1])
    bias = shard["model.layers.0.mlp.gate.e_score_correction_bias"]
    free = bias[bias < 1]
    assert torch.equal(free, free.sort(descending=True).values)
    assert len(free.unique()) == len(free) > 1
