from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.comparisons import Ground, make_ground


@pytest.fixture(scope="session")
def shared_ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground")).folder


@pytest.fixture
def ground(shared_ground: Path, tmp_path: Path) -> Ground:
    return Ground(shutil.copytree(shared_ground, tmp_path / "ground"))
