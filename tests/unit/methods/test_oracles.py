"""What the oracles run, and which of them knows more."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from support.statistics import fake_layers

from expertweaver.methods import abstopk, contribution_oracle
from expertweaver.modeling.reference import activation, dense_ffn, designed_ffn, neuron_activations, running_neurons
from expertweaver.modeling.values import GLUWeights, LayerDesign
from expertweaver.partition.budget import SliceBudget

BUDGET = SliceBudget(num_slices=8, slice_width=6, active_slices=4)
ACT = activation("silu")
[LAYER] = fake_layers(num_layers=1, neurons=48)


def design(method: ModuleType, weights: GLUWeights) -> LayerDesign:
    [allocation] = method.allocate(method.Options(), [LAYER.statistics], BUDGET, 1)
    return method.design(method.Options(), 0, LAYER.statistics, weights, allocation, BUDGET)


def running(method: ModuleType, weights: GLUWeights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gate_act, neuron_act = neuron_activations(LAYER.inputs, weights, ACT)
    found = running_neurons(LAYER.inputs, gate_act, neuron_act, design(method, weights), weights.down)
    return found, gate_act.abs(), neuron_act.abs() * weights.down.norm(dim=0)


def loss(method: ModuleType, weights: GLUWeights) -> float:
    wanted = dense_ffn(LAYER.inputs, weights, ACT)
    found = designed_ffn(LAYER.inputs, weights, design(method, weights), ACT)
    return float((found - wanted).square().sum() / wanted.square().sum())


def test_each_token_runs_its_strongest_neurons() -> None:
    for method, which in ((abstopk, 1), (contribution_oracle, 2)):
        parts = running(method, LAYER.weights)
        found, strength = parts[0], parts[which]
        assert found.sum(dim=1).unique().tolist() == [24]
        weakest_kept = strength.where(found, torch.inf).min(dim=1).values
        strongest_dropped = strength.where(~found, -torch.inf).max(dim=1).values
        assert (weakest_kept >= strongest_dropped).all()


def test_the_contribution_oracle_loses_nothing_where_gates_mislead() -> None:
    """Most neurons have large gates and no down column: only the contribution tells them from the rest."""
    gate, down = LAYER.weights.gate.clone(), LAYER.weights.down.clone()
    gate[:36] *= 10
    gate[36:] *= 0.1
    down[:, :36] = 0
    weights = replace(LAYER.weights, gate=gate, down=down)
    assert loss(contribution_oracle, weights) < 1e-10
    assert loss(abstopk, weights) > 0.1
    assert loss(contribution_oracle, LAYER.weights) < loss(abstopk, LAYER.weights)
