"""Fixtures: a fresh bench for every test, copied from one that is made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import Bench, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every bench starts from."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def bench(template: Path, tmp_path: Path) -> Bench:
    """A model, a text and a place for the output."""
    return Bench(shutil.copytree(template, tmp_path / "bench"))
