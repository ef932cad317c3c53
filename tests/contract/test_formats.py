"""Every registered format through one suite."""

from __future__ import annotations

import inspect

import pytest

from expertweaver.formats.base import Capabilities, Format, load_format
from expertweaver.modeling.values import Need
from expertweaver.registry import module_names


@pytest.mark.parametrize("name", module_names("formats"))
def test_a_format_has_every_function_of_the_contract_with_its_parameters(name: str) -> None:
    form = load_format(name)
    contract = {n: f for n, f in vars(Format).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(contract) >= 7
    for function, declared in contract.items():
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        assert list(inspect.signature(getattr(form, function)).parameters) == wanted, function
        assert inspect.getdoc(getattr(form, function)), function


@pytest.mark.parametrize("name", module_names("formats"))
def test_a_format_says_what_it_can_hold(name: str) -> None:
    found = load_format(name).CAPABILITIES
    assert isinstance(found, Capabilities)
    assert all(isinstance(need, Need) for need in found.needs)
    assert all(file.is_file() for file in found.side_files)
    assert Need.ORACLE not in found.needs, "nothing that is served can know what an oracle knows"
