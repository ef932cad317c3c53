"""A dense GLU model on disk: its family, sizes and tensors under canonical names, read one at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertweaver.dense.accounting import Origin, account, check_shapes, expected_origins, find_rule, layer_prefix
from expertweaver.dense.family import Dims, Family, check_num_layers, find_family, read_dims, sliding_window
from expertweaver.dense.reader import TensorReader
from expertweaver.dense.source import ModelFolder, find_model
from expertweaver.dense.traits import Traits, read_traits
from expertweaver.errors import ArchitectureError, CheckpointError, Problem, shortened
from expertweaver.modeling.values import GLUWeights

if TYPE_CHECKING:
    from torch import Tensor

FFN_PREFIX = "mlp."


@dataclass(frozen=True)
class DenseModel:
    """A model ready to be converted; opening it read no weight.

    `config` is the stock configuration with every default filled in; `origins` maps each canonical tensor name to
    its place in the checkpoint, and every source tensor is one of these origins, a tied copy, or named in `dropped`.
    """

    folder: ModelFolder
    family: Family
    dims: Dims
    config: Mapping[str, Any]
    reader: TensorReader
    origins: Mapping[str, Origin]
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The type that most weights are stored in, as safetensors spells it (`BF16`)."""
        counts: Counter[str] = Counter()
        for info in self.reader.tensors.values():
            counts[info.dtype] += info.num_elements
        return counts.most_common(1)[0][0]

    @cached_property
    def traits(self) -> Traits:
        """What its decoder layers do beyond the plainest."""
        return read_traits(self.config, self.family, self.dims)

    @property
    def sequence_limit(self) -> tuple[str, int]:
        """The longest sample that can be calibrated on, and the configuration key that says so.

        Longrope has other positions for texts beyond the original length, and a packed row has one set for all samples.
        """
        original = "original_max_position_embeddings"
        rope = self.config["rope_parameters"]
        if rope.get("rope_type") == "longrope":
            return original, int(rope[original])
        return "max_position_embeddings", self.dims.max_position_embeddings

    @property
    def num_params(self) -> int:
        """Parameters of the dense model; a tied head counts once."""
        return sum(info.num_elements for name, info in self.reader.tensors.items() if name not in self.dropped)

    @property
    def reach(self) -> int | None:
        """The least number of tokens that any layer's attention reaches; None where every layer reaches all."""
        windows = (sliding_window(self.config, layer) for layer in range(self.dims.num_hidden_layers))
        return min((w for w in windows if w is not None and w < self.dims.max_position_embeddings), default=None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor."""
        return self.dims.shape(find_rule(self.family, name).shape)

    def names(self, layer: int | None = None) -> list[str]:
        """Canonical names of one decoder layer's tensors, or of those outside the layers."""
        prefix = "model.layers." if layer is None else layer_prefix(layer)
        return [name for name in self.origins if name.startswith(prefix) == (layer is not None)]

    def read(self, name: str) -> Tensor:
        """Read a tensor by its canonical name, in the stored type, or in float32 where a constant is added to it.

        Raises:
            CheckpointError: The value is not finite, or a stored copy differs from the tensor it is tied to.
        """
        origin = self.origins[name]
        tensor = self.reader.read(origin.source)
        if name in self.dropped and name != origin.source:
            self._check_tied(name, tensor)
        plus = find_rule(self.family, name).plus
        tensor = tensor if origin.rows is None else tensor[slice(*origin.rows)]
        return tensor.float() + plus if plus else tensor

    def read_ffn(self, layer: int) -> GLUWeights:
        """Read the FFN of one layer: gate and up [F, H], down [H, F]."""
        prefix = layer_prefix(layer) + FFN_PREFIX
        gate, up, down = (self.read(f"{prefix}{part}_proj.weight") for part in ("gate", "up", "down"))
        return GLUWeights(gate, up, down, self.dims.hidden_act)

    def _check_tied(self, name: str, tensor: Tensor) -> None:
        import torch

        if not torch.equal(self.reader.read(name), tensor):
            found = f"a '{name}' of its own that differs"
            fix = "Set tie_word_embeddings to false in config.json if the head is meant to be separate."
            where = str(self.folder.path)
            raise CheckpointError(Problem(where, f"'{name}' equal to the tensor it is tied to", found, fix))


def open_dense(name: str) -> DenseModel:
    """Open a model folder or hub model and account for every tensor in it, from headers alone.

    Raises:
        CheckpointError: Missing or corrupt files; tensors that are missing, unknown, of a wrong shape or type.
        ArchitectureError: A kind of model that cannot be converted, with the reason.
    """
    folder = find_model(name)
    raw = _read_object(folder.path / "config.json")
    if (folder.path / "generation_config.json").exists():
        _read_object(folder.path / "generation_config.json")  # it is copied, and must not break the result
    where = str(folder.path / "config.json")
    family = find_family(str(raw.get("model_type")), where)
    check_num_layers(raw, where)
    config = _complete_config(folder.path)
    dims = read_dims(config, where, act_field=family.act_field)
    problems = _unsupported(config, family, dims, where)
    if problems:
        raise ArchitectureError(*problems)
    reader = TensorReader.open(folder.path)
    origins = expected_origins(family, dims, config)
    dropped = account(reader, origins, family)
    check_shapes(reader, family, dims, origins)
    _check_buildable(config, where)
    return DenseModel(folder, family, dims, config, reader, origins, dropped)


def _check_buildable(config: Mapping[str, Any], where: str) -> None:
    """Build one layer without weights, so that values that the stock class stumbles over are known now."""
    from expertweaver.dense.stock import StockModules

    values = {**config, "num_hidden_layers": 1}
    if isinstance(values.get("layer_types"), list):
        values["layer_types"] = values["layer_types"][:1]
    try:
        StockModules(values)
    except Exception as error:  # a foreign configuration in a library with many error classes
        found = f"{type(error).__name__}: {shortened(str(error))}"
        fix = "Repair the config.json or download the model again."
        raise CheckpointError(Problem(where, "values that transformers can build a layer of", found, fix)) from error


def _read_object(file: Path) -> dict[str, Any]:
    fix = "Give the folder that save_pretrained wrote."
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(Problem(str(file), f"a model's {file.name}", str(error), fix)) from error
    if not isinstance(config, dict):
        raise CheckpointError(Problem(str(file), "a JSON object", type(config).__name__, fix))
    return config


def _complete_config(folder: Path) -> dict[str, Any]:
    """The stock class's view of config.json: old spellings translated, defaults filled in."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).to_dict()
    except Exception as error:  # validation of a foreign file by a library with many error classes
        found = f"{type(error).__name__}: {shortened(str(error))}"
        fix = "Repair the config.json or download the model again."
        raise CheckpointError(Problem(str(folder / "config.json"), "a valid configuration", found, fix)) from error


def _unsupported(config: Mapping[str, Any], family: Family, dims: Dims, where: str) -> list[Problem]:
    problems = []
    if config.get("quantization_config") is not None:
        fix = "Convert the unquantised model, and quantise the result."
        problems.append(Problem(where, "unquantised weights", "a quantization_config", fix))
    if config.get("use_bidirectional_attention"):
        fix = "Convert a model that generates text from left to right."
        problems.append(Problem(where, "causal attention", "use_bidirectional_attention", fix))
    stated = config.get("sliding_window")
    if stated is not None and not isinstance(stated, int):
        fix = "Repair the config.json or download the model again."
        found = shortened(repr(stated))
        return [*problems, Problem(f"{where}: sliding_window", "a number of tokens, or none", found, fix)]
    rope = config.get("rope_parameters") or {}
    by_kind = [values for values in rope.values() if isinstance(values, Mapping)]
    for values in by_kind or [rope]:
        problems += _rope_problems(values, family, where)
    if dims.num_attention_heads % dims.num_key_value_heads:
        found = f"{dims.num_attention_heads} query and {dims.num_key_value_heads} key-value heads"
        problems.append(Problem(where, "query heads a multiple of key-value heads", found, "Repair the config.json."))
    return problems


def _rope_problems(rope: Mapping[str, Any], family: Family, where: str) -> list[Problem]:
    """Positions that the family does not know, or values that transformers would stumble over in the first layer."""
    kind = rope.get("rope_type", "default")
    if kind not in family.rope_types:
        expected = f"rope_type one of {', '.join(family.rope_types)} for {family.model_type}"
        return [Problem(where, expected, f"'{kind}'", "This position scaling is not supported yet.")]
    fix = "Repair the config.json or download the model again."
    if kind == "longrope" and not _is_rope_value("original", rope.get("original_max_position_embeddings")):
        found = repr(rope.get("original_max_position_embeddings"))
        expected, name = "a positive number", "original_max_position_embeddings"
        return [Problem(f"{where}: rope_parameters.{name}", expected, found, fix)]
    return [
        Problem(f"{where}: rope_parameters.{name}", "a positive number", repr(value), fix)
        for name, value in rope.items()
        if name not in ("rope_type", "type") and not _is_rope_value(name, value)
    ]


def _is_rope_value(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):  # options that are off or on
        return name not in ("rope_theta", "original")
    if isinstance(value, list):  # longrope's long_factor and short_factor, one number a frequency
        return name.endswith("_factor") and all(_is_rope_value("factor", part) for part in value)
    return isinstance(value, int | float) and 0 < value < math.inf
