"""Configurations, tokenizers and side files that somebody made absurd: refused in four parts, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import Bench, Case, Complaint, check_refused
from support.models import CONFIG
from support.spoils import Spoil, both, config, instead, pipe, source_file, tokenizer, tokenizer_config

REPAIR = "Repair the config.json"
GIVE = "Give the folder that save_pretrained wrote"
NAN, INFINITE = float("nan"), float("inf")


def refused_size(name: str, value: Any) -> Case:
    """Our own check of a size names it with its limits."""
    words = Complaint(f"{CONFIG}: {name}", "a whole number from 1 to", repr(value)[:80], REPAIR)
    return Case(f"{name} = {value!r}"[:60], words, config(**{name: value}), error="ArchitectureError")


def refused_value(name: str, value: Any, found: str | None = None) -> Case:
    """The library's own validation, in our four parts."""
    words = Complaint(CONFIG, "a valid configuration", name if found is None else found, REPAIR)
    return Case(f"{name} = {value!r}"[:60], words, config(**{name: value}))


def refused_layer(name: str, value: Any, found: str) -> Case:
    """A value that only building a layer finds."""
    words = Complaint(CONFIG, "values that transformers can build a layer of", found, REPAIR)
    return Case(f"{name} = {value!r}"[:60], words, config(**{name: value}))


def refused_rope(**values: Any) -> Case:
    [name] = set(values) - {"rope_type"}
    rope = {"rope_type": "default", "rope_theta": 1e4, **values}
    words = Complaint(f"{CONFIG}: rope_parameters.{name}", "a positive number", repr(values[name]), REPAIR)
    return Case(f"rope {values}"[:60], words, config(rope_parameters=rope), error="ArchitectureError")


def refused_text(name: str, content: str | bytes, expected: str, found: str) -> Case:
    return Case(f"config: {name}", Complaint(CONFIG, expected, found, GIVE), source_file(CONFIG, content))


SIZES = (
    *(refused_size("vocab_size", value) for value in (-1, 0, 2**40)),
    *(refused_size("num_hidden_layers", value) for value in (-1, 2.5, None, True, "2", 10**30, [2], NAN)),
    refused_size("num_attention_heads", -4),
    refused_size("num_key_value_heads", -1),
    *(refused_size("head_dim", value) for value in (-8, 10**12)),
    *(refused_size("max_position_embeddings", value) for value in (-1, 0, 10**30)),
)
VALUES = (
    *(refused_value("vocab_size", value) for value in ("96", 96.0, None, True, [96], {"a": None})),
    *(refused_value("num_attention_heads", value) for value in (4.0, "4", None, [None])),
    refused_value("num_attention_heads", 0, "ZeroDivisionError"),
    refused_value("num_attention_heads", 3, "validate_architecture"),
    refused_value("num_key_value_heads", [[None]]),
    *(refused_value("head_dim", value) for value in (8.5, "8", [None])),
    refused_value("head_dim", 7, "validate_rope"),
    *(refused_value("hidden_size", value) for value in ("32", None, [], INFINITE)),
    *(refused_value("intermediate_size", value) for value in (64.0, None, {"x": {"y": None}})),
    *(refused_value("rms_norm_eps", value) for value in (-1, 0, "x", None, [])),
    *(refused_value("hidden_act", value) for value in (None, [], {}, 3)),
    *(refused_value("tie_word_embeddings", value) for value in ("yes", 3, None)),
    *(refused_value("eos_token_id", value) for value in ([None], {"a": 1})),
    *(refused_value("attention_bias", value) for value in ("x", None, 2)),
    refused_value("initializer_range", -1),
    refused_value("dtype", "evil", "no attribute 'evil'"),
    refused_value("dtype", "../x", "no attribute '../x'"),
    *(refused_value("rope_parameters", value) for value in ([], "x")),
)
LAYERS = (
    refused_layer("dtype", 3, "is_floating_point"),
    refused_layer("hidden_act", "silu; rm -rf", "silu; rm -rf"),
    refused_layer("pad_token_id", 96, "Padding_idx"),
    refused_layer("pad_token_id", 10**9, "Padding_idx"),
    refused_layer("rope_scaling", {"type": "linear", "factor": None}, "unsupported operand"),
)
OTHERS = (
    refused_rope(rope_type="linear", factor=0),
    refused_rope(rope_type="linear", factor=-2),
    refused_rope(rope_type="yarn", factor="x"),
    *(refused_rope(rope_theta=value) for value in (0, None, NAN, INFINITE, [1])),
    *(
        Case(
            f"sliding_window {value!r}",
            Complaint(f"{CONFIG}: sliding_window", "a number of tokens, or none", repr(value), REPAIR),
            config(sliding_window=value),
            error="ArchitectureError",
        )
        for value in ("x", [], {})
    ),
    *(
        Case(
            f"model_type {value!r}",
            Complaint(CONFIG, "model_type of a supported family", repr(str(value)), "one of these families"),
            config(model_type=value),
            error="ArchitectureError",
        )
        for value in (None, [], {}, "", "../x", 3, "<b>", "LLAMA")
    ),
    Case(
        "eps not a number",
        Complaint("layer 0", "finite activations", "NaN or infinite", "check the model's weights"),
        config(rms_norm_eps=NAN),
        error="CalibrationError",
        planned=False,
    ),
    Case(
        "biases that are not there",
        Complaint("dense", "every tensor of a llama model", "mlp.down_proj.bias", "Copy or download"),
        config(mlp_bias=True),
    ),
)
TEXTS = (
    refused_text("null", "null", "a JSON object", "NoneType"),
    refused_text("a string", '"x"', "a JSON object", "str"),
    refused_text("empty", "", "a model's config.json", "Expecting value"),
    refused_text("a page of HTML", "<html>", "a model's config.json", "Expecting value"),
    refused_text("not UTF-8", b'{"model_type": "\xff"}', "a model's config.json", "0xff"),
    refused_text("UTF-16", '{"model_type": "llama"}'.encode("utf-16"), "a model's config.json", "codec"),
    refused_text("nulls at the end", b'{"model_type": "llama"}\0\0', "a model's config.json", "Extra data"),
    refused_text("a number too long", '{"hidden_size": ' + "9" * 5000 + "}", "a model's config.json", "4300 digits"),
    Case("config: a folder", Complaint(CONFIG, "config.json", "Is a directory", GIVE), instead(CONFIG, Path.mkdir)),
    Case("config: a pipe", Complaint(CONFIG, "a regular file", "a pipe", "Put a file there"), pipe(CONFIG)),
    Case(
        "config: a link to a file of the user's",
        Complaint(CONFIG, "a file inside the model folder", "passwd", "Put the file itself"),
        instead(CONFIG, lambda path: path.symlink_to("/etc/passwd")),
    ),
    *(
        Case(
            f"{name}: a link to a file of the user's",
            Complaint(name, "a file inside the model folder", "passwd", "Put the file itself"),
            instead(name, lambda path: path.symlink_to("/etc/passwd")),
        )
        for name in ("LICENSE", "NOTICE.txt", "README.md", "tokenizer.json", "merges.txt", "chat_template.jinja")
    ),
    *(
        Case(
            f"generation_config {content[:8]}",
            Complaint("generation_config.json", expected, found, GIVE),
            source_file("generation_config.json", content),
        )
        for content, expected, found in (
            ("{", "generation_config.json", "line 1"),
            ("[]", "a JSON object", "list"),
            ("null", "a JSON object", "NoneType"),
        )
    ),
)


def bad_tokenizer(name: str, spoil: Spoil, found: str) -> Case:
    words = Complaint("dense", "a tokenizer", found, "Copy the tokenizer files")
    return Case(f"tokenizer: {name}", words, spoil, planned=False)


def bpe(vocab: dict[str, int], merges: list[str]) -> Spoil:
    return tokenizer(model={"type": "BPE", "vocab": vocab, "merges": merges})


TOKENIZERS = (
    bad_tokenizer("a list", source_file("tokenizer.json", "[]"), "TypeError"),
    bad_tokenizer("null", source_file("tokenizer.json", "null"), "AttributeError"),
    bad_tokenizer("truncated", source_file("tokenizer.json", '{"version": "1.0", "trunc'), "JSONDecodeError"),
    bad_tokenizer("not UTF-8", source_file("tokenizer.json", b"\xff\xfe"), "0xff"),
    bad_tokenizer("too deep", source_file("tokenizer.json", "[" * 100_000), "recursion"),
    bad_tokenizer("a folder", instead("tokenizer.json", Path.mkdir), "ValueError"),
    bad_tokenizer("no model", tokenizer(model=None), "did not match any variant"),
    bad_tokenizer("a model that does not exist", tokenizer(model={"type": "Evil"}), "did not match any variant"),
    bad_tokenizer("a negative id", bpe({"a": -1}, []), "invalid value"),
    bad_tokenizer("an id beyond 32 bits", bpe({"a": 2**40}, []), "invalid value"),
    bad_tokenizer("merges of three", bpe({"a": 0}, ["a b c"]), "Merges"),
    bad_tokenizer("merges of unknown tokens", bpe({"a": 0}, ["x y"]), "out of vocabulary"),
    bad_tokenizer("a version that does not exist", tokenizer(version="9.9"), "9.9"),
    bad_tokenizer(
        "a pattern that does not end",
        tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        "Oniguruma",
    ),
    bad_tokenizer("settings that are broken", source_file("tokenizer_config.json", "{"), "JSONDecodeError"),
    bad_tokenizer("settings that are a list", source_file("tokenizer_config.json", "[]"), "AttributeError"),
    bad_tokenizer("a class that is a number", tokenizer_config(tokenizer_class=3), "AttributeError"),
    bad_tokenizer("a special token that is a map", tokenizer_config(bos_token={"a": 1}), "TypeError"),
    bad_tokenizer("a template that is a list", tokenizer_config(chat_template=[1]), "TypeError"),
    bad_tokenizer("special tokens that are broken", source_file("special_tokens_map.json", "{"), "JSONDecodeError"),
    bad_tokenizer("added tokens that are broken", source_file("added_tokens.json", "{"), "JSONDecodeError"),
    bad_tokenizer("added tokens that have no ids", source_file("added_tokens.json", '{"<x>": "y"}'), "TypeError"),
    Case(
        "tokenizer: a pipe",
        Complaint("tokenizer.json", "a regular file", "a pipe", "Put a file there"),
        pipe("tokenizer.json"),
    ),
    Case(
        "tokenizer: no word of the text",
        Complaint("calibration text", "one sequence of 16 tokens", "0 tokens", "Give more text"),
        bpe({}, []),
        error="CalibrationError",
        planned=False,
    ),
)

CASES = (*SIZES, *VALUES, *LAYERS, *OTHERS, *TEXTS, *TOKENIZERS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_absurd_models_are_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


CARDS = {
    "a date that is none": "---\ndate: 2001-99-99\n---\n",
    "a number too long": "---\nlicense: " + "1" * 5000 + "\n---\n",
    "too deep": "---\nlicense: " + "[" * 3000 + "\n---\n",
    "code": "---\nlicense: !!python/object/apply:os.system ['exit 1']\n---\n",
    "aliases": "---\nlicense: &a [x, x]\nother: [*a, *a]\n---\n",
    "no end": "---\n" + "a: b\n" * 300_000,
}


def test_a_foreign_card_never_stops_a_conversion(bench: Bench) -> None:
    """What of it can be read is inherited; it is a page for people, and hours of work must not hang on it."""
    from expertweaver.checkpoint.card import card_metadata

    source = {"model": "dense", "revision": None}
    for text in CARDS.values():
        (bench.source / "README.md").write_text(text, encoding="utf-8")
        assert card_metadata({"format": "glm4_moe", "source": source}, bench.source)["base_model"] == "dense"
    both(source_file("README.md", CARDS["a date that is none"]))(bench)
    assert bench.convert().exit_code == 0


def test_what_a_model_says_of_itself_is_escaped_wherever_html_is_written(bench: Bench) -> None:
    from support.pages import read

    hostile = "<script>alert(1)</script>"
    source = bench.source.rename(bench.folder / "<img src=x onerror=alert(2)>")
    rows = [json.loads(line) | {"domain": hostile} for line in bench.text.read_text("utf-8").splitlines()]
    bench.text.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = bench.arguments("--set", f"evaluate.text=[{bench.text}]")
    arguments[1] = source
    from support.commands import run

    result = run(*arguments)
    assert result.exit_code == 0, result.output
    page = (bench.out / "expertweaver" / "report.html").read_text("utf-8")
    reading = read(page)
    assert hostile not in page
    assert not [element for element in reading.all("img") if "onerror" in element.attributes]
    assert any(hostile in element.text for element in reading.elements), "the domain is not in the report at all"
    card = (bench.out / "README.md").read_text("utf-8")
    assert "# &lt;img src=x onerror=alert(2)&gt;" in card
