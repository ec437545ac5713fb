from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from procreward.engine.loading import LoadedModel, load_model
from tests.tiny import save_tiny, save_tiny_adapter


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return save_tiny_adapter(tmp_path_factory.mktemp("tiny") / "adapter", tiny_folder)


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(str(tiny_folder), threads=1)


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
