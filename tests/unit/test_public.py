"""The public names: each exists, has a docstring, and comes from where the package says."""

from __future__ import annotations

import inspect

import pytest

import expertweaver


def test_every_public_name_has_a_home() -> None:
    assert set(expertweaver.__all__) == set(expertweaver._HOMES) | {"__version__"}
    assert dir(expertweaver) == expertweaver.__all__


@pytest.mark.parametrize("name", sorted(expertweaver._HOMES))
def test_a_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(expertweaver, name)
    assert found.__module__ == expertweaver._HOMES[name]
    assert inspect.getdoc(found)


def test_functions_are_not_shadowed_by_modules() -> None:
    import expertweaver.comparison.run
    import expertweaver.conversion
    import expertweaver.evaluation
    import expertweaver.inspection
    import expertweaver.planning

    for name in ("convert", "evaluate", "inspect", "plan", "demo", "compare"):
        assert callable(getattr(expertweaver, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        _ = expertweaver.konvert  # pyright: ignore[reportAttributeAccessIssue]
