"""One real engine of each kind for the whole session: vLLM takes half a minute to start."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.backends.vllm import VllmEngine
from engines.base import Engine
from pipeline.config.schema import EngineConfig
from tests.paths import MODEL


@pytest.fixture(scope="session")
def model_directory() -> Path:
    return MODEL


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(
        str(MODEL), EngineConfig(slots=16, chunk_tokens=8, vllm={"enable_prefix_caching": True})
    )
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def transformers_engine() -> AsyncIterator[Engine]:
    from engines.backends.transformers import (
        TransformersEngine,  # seconds, and not every test wants it
    )

    engine = TransformersEngine(
        str(MODEL), EngineConfig(kind="transformers", slots=16, chunk_tokens=8)
    )
    await engine.start()
    yield engine
    await engine.close()
