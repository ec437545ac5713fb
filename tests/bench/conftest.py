from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from procreward.engine.loading import LoadedModel, load_model
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny(tmp_path_factory.mktemp("tiny") / "model")
    return load_model(str(folder), device="cpu", threads=1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
