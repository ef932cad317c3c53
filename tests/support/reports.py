"""Reports as a real run would give them: a 0.6 B model at two budgets, six domains, a random baseline."""

from __future__ import annotations

import math
import random
from typing import Any

from expertweaver.evaluation.results import DomainQuality, Evaluation, ModelQuality, RoutingUsage
from expertweaver.report.contents import Report

NUM_LAYERS = 28
NUM_SLICES = 64
DENSE_PARAMS = 596_049_920
FFN_PARAMS = 3 * 1024 * 3072 * NUM_LAYERS
LOSS = {"code": 1.412, "mathematics": 1.873, "dialogue": 2.954, "encyclopedia": 2.671, "fiction": 3.318, "law": 2.207}
HOSTILE = "<script>alert(1)</script>"
HOSTILE_END = "</script><img src=x onerror=alert(2)>"


def manifest(mlp_sparsity: float = 0.25, num_layers: int = NUM_LAYERS) -> dict[str, Any]:
    """The manifest of one conversion."""
    active = round((1 - mlp_sparsity) * NUM_SLICES)
    num_params = DENSE_PARAMS + NUM_SLICES * 1024 * num_layers
    layers = [layer_plan(index, num_layers, active) for index in range(num_layers)]
    fewest = min(layer["num_shared"] for layer in layers)
    return {
        "recipe": recipe(mlp_sparsity),
        "source": source(num_layers),
        "method": "expertweaver",
        "format": "glm4_moe",
        "budget": {
            "mlp_sparsity": mlp_sparsity,
            "num_slices": NUM_SLICES,
            "slice_width": 48,
            "active_slices": active,
            "num_params": num_params,
            "num_active_params": num_params - round(mlp_sparsity * FFN_PARAMS),
            "dense_num_params": DENSE_PARAMS,
        },
        "stored": {
            "num_experts": NUM_SLICES - fewest,
            "num_experts_per_tok": active - fewest,
            "n_shared_experts": fewest,
            "moe_intermediate_size": 48,
        },
        "calibration": {
            "domains": {name: {"num_samples": 40, "num_tokens": 20_480} for name in LOSS},
            "num_tokens": 20_480 * len(LOSS),
            "fingerprint": "9f2c61d07a4be8135c0e",
            "shipped": True,
        },
        "warnings": [],
        "layers": layers,
    }


def recipe(mlp_sparsity: float) -> dict[str, Any]:
    """A resolved recipe."""
    return {
        "method": {"name": "expertweaver", "profile": "abs", "tau": 0.6, "alpha_min": 0.2, "alpha_max": 0.7},
        "budget": {"mlp_sparsity": mlp_sparsity, "num_slices": NUM_SLICES},
        "calibration": {"paths": [], "num_samples": 240, "seed": 0},
        "output": {"format": "glm4_moe", "dtype": "auto"},
    }


def source(num_layers: int) -> dict[str, Any]:
    """The dense model."""
    return {
        "model": "Qwen/Qwen3-0.6B",
        "revision": "c1899de289a04d12100db370d81485cdf75e47ca",
        "family": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": num_layers,
        "vocab_size": 151_936,
    }


def layer_plan(index: int, num_layers: int, active: int) -> dict[str, Any]:
    """One layer's entry: specialised in the middle, general at both ends."""
    depth = index / max(1, num_layers - 1)
    special = 0.16 + 0.62 * math.sin(math.pi * min(1.0, depth * 1.15)) ** 2 + 0.05 * math.sin(index * 2.3)
    alpha = 0.7 - 0.5 * special
    wanted = round(alpha * NUM_SLICES)
    shared = min(wanted, active - 1)
    middle = 0.34 + 0.36 * special
    quantiles = [middle * math.exp(0.52 * math.tan((place / 20 - 0.5) * 2.6) / 1.6) for place in range(21)]
    steep = 1.4 + 3.2 * special
    return {
        "layer": index,
        "num_shared": shared,
        "num_routed": NUM_SLICES - shared,
        "num_active_routed": active - shared,
        "alpha": alpha,
        "r": special,
        "clip": None if shared == wanted else f"shared slices {wanted} -> {shared}",
        "cv": {"tau": 0.6, "quantiles": quantiles, "mean": middle * 1.1},
        "activation_frequency": [0.02 + 0.96 * (place / 100) ** steep for place in range(101)],
        "router_scale_log2": -9 - index % 3,
        "max_abs_router_logit": 0.0041 + 0.00005 * index,
    }


def routing(active: int, num_layers: int = NUM_LAYERS, domains: tuple[str, ...] = tuple(LOSS)) -> RoutingUsage:
    """Expert shares that differ by domain; some layers have experts that are always on."""
    generator = random.Random(7)
    fewest = 8
    num_experts, per_token = NUM_SLICES - fewest, active - fewest
    share: dict[str, list[list[float]]] = {domain: [] for domain in domains}
    for layer in range(num_layers):
        always = (layer * 5) % 9
        even = (per_token - always) / (num_experts - always)
        base = [generator.gauss(0, 0.5) for _ in range(num_experts)]
        for place, domain in enumerate(domains):
            lean = [generator.gauss(0, 0.25 + 0.14 * place * layer / num_layers) for _ in range(num_experts)]
            row = [_logistic(math.log(even / (1 - even)) + b + own) for b, own in zip(base, lean, strict=True)]
            share[domain].append([1.0] * always + row[always:])
    return RoutingUsage(num_experts_per_tok=per_token, share=share)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def model(name: str, loss: float, num_params: int, num_active_params: int, active: int | None) -> ModelQuality:
    """A model that loses `loss` nats against the dense one, more in specialised domains."""
    entries = [_entry(domain, nats, loss, place) for place, (domain, nats) in enumerate(LOSS.items())]
    entries.append(_entry("all", sum(LOSS.values()) / len(LOSS), loss, 2))
    return ModelQuality(
        name=name,
        path=f"checkpoints/{name}",
        num_params=num_params,
        num_active_params=num_active_params,
        domains=tuple(entries),
        routing=None if active is None else routing(active),
    )


def _entry(domain: str, dense: float, loss: float, place: int) -> DomainQuality:
    nats = dense + loss * (1.5 - 0.2 * place)
    documents = 240 if domain == "all" else 40
    return DomainQuality(
        domain=domain,
        num_documents=documents,
        num_tokens=documents * 511,
        nats_per_token=nats,
        interval=(nats - 0.06 - 0.01 * place, nats + 0.065 + 0.01 * place),
        perplexity=math.exp(nats),
        kl_to_dense=loss * 0.93 if loss else None,
        top1_agreement=1 - 0.36 * loss if loss else None,
    )


def evaluation() -> Evaluation:
    """Dense, two budgets, and the random baseline at the larger one."""
    quarter, half = manifest(0.25)["budget"], manifest(0.5)["budget"]
    models = (
        model("Qwen3-0.6B", 0.0, DENSE_PARAMS, DENSE_PARAMS, None),
        model("expertweaver-25", 0.083, quarter["num_params"], quarter["num_active_params"], 48),
        model("expertweaver-50", 0.294, half["num_params"], half["num_active_params"], 32),
        model("random-50", 0.871, half["num_params"], half["num_active_params"], 32),
    )
    return Evaluation(text=("held-back documents of six domains",), models=models, has_dense=True)


def speed() -> dict[str, dict[str, Any]]:
    """Measured beside what the skipped arithmetic allows."""
    setup = {"device": "4 CPU cores", "dtype": "bfloat16", "batch_size": 1, "prompt_tokens": 512, "runs": 5}
    rows = {
        "Qwen3-0.6B": (21.4, 402.0, 1.0, 1.0, 1.0),
        "expertweaver-25": (23.9, 371.0, 0.895, 1.084, 0.888),
        "expertweaver-50": (27.6, 418.0, 0.775, 0.962, 0.778),
    }
    keys = ("decode_tokens_per_second", "prefill_tokens_per_second", "decode_ratio", "prefill_ratio", "ideal_ratio")
    return {name: {**dict(zip(keys, values, strict=True)), "setup": setup} for name, values in rows.items()}


def full_report() -> Report:
    """Every section filled."""
    half = manifest(0.5)
    clipped = sum(layer["clip"] is not None for layer in half["layers"])
    half["warnings"] = [
        f"Shared slices were clipped in {clipped} of {NUM_LAYERS} layers: alpha_max 0.7 leaves no room for routing.",
        "122,880 calibration tokens for an intermediate_size of 3,072 are few.",
    ]
    return Report(
        title="Qwen3-0.6B at two budgets",
        conversions=(manifest(0.25), half),
        evaluation=evaluation(),
        speed=speed(),
        notes=("Training-free: both conversions are measured as they come out, without any recovery.",),
    )


def hostile_report() -> Report:
    """Every place that takes text from data tries to break out of the page."""
    hostile = manifest(0.25, num_layers=2)
    hostile["recipe"] = {HOSTILE: HOSTILE_END, "comment": "</pre><!--"}
    hostile["source"] |= {"model": HOSTILE, "revision": HOSTILE_END, "family": HOSTILE}
    hostile |= {"method": HOSTILE, "format": HOSTILE_END, "warnings": [HOSTILE, HOSTILE_END], "name": HOSTILE}
    hostile["calibration"]["domains"] = {HOSTILE: {"num_samples": 2, "num_tokens": 9}}
    hostile["calibration"]["fingerprint"] = '"><script>alert(3)</script>'
    hostile["layers"][0]["clip"] = HOSTILE_END
    entries = tuple(
        DomainQuality(name, 12, 600, 2.5, (2.4, 2.6), math.exp(2.5), 0.1, 0.9) for name in (HOSTILE, HOSTILE_END, "all")
    )
    used = routing(48, 2, (HOSTILE, HOSTILE_END))
    models = tuple(
        ModelQuality(name, HOSTILE_END, 100, 90, entries, use)
        for name, use in ((HOSTILE_END, None), (HOSTILE, used), ('" onmouseover="alert(4)', used))
    )
    return Report(
        title=HOSTILE,
        conversions=(hostile,),
        evaluation=Evaluation((HOSTILE_END,), models, True, {HOSTILE: HOSTILE_END}),
        speed={HOSTILE: {"decode_tokens_per_second": 3.0, "setup": {HOSTILE: HOSTILE_END}}},
        notes=(HOSTILE, HOSTILE_END),
    )
