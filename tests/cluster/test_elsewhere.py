"""Models that people bring along, served: token ids and a mask by name, an ONNX file without a transform."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from orchestrator.models.source import InputShape
from shared.client import Client
from shared.errors import ErrorCode, JobError
from shared.tensor import Array
from tests.cluster.conftest import JPEG
from tests.fakes import nets, shapes
from tests.shell.test_models_onnx import export

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
FACTORY = "tests.fakes.nets:encoder"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """Two agents; an encoder in two stages, an ONNX file, and a classifier on int8 in two."""
    folder = tmp_path_factory.mktemp("elsewhere")
    export(folder / "my net.onnx", nets.convolutional(), (torch.zeros(1, 3, 16, 16),))
    tokens = tuple(InputShape.parse(f"{name}:1x12:int64") for name in ("ids", "mask"))
    async with LocalCluster(folder / "cluster", agents=2) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(
            FACTORY, ServeFlags(input_shapes=tokens, min_stages=2, max_stages=2, timeout_s=110)
        )
        await cluster.serve(str(folder / "my net.onnx"), ServeFlags(timeout_s=110))
        (folder / "shapes.json").write_text(json.dumps(shapes.TRANSFORM))
        eight = ServeFlags(
            name="shapes",
            input_shapes=(InputShape.parse(f"1x3x{shapes.EDGE}x{shapes.EDGE}"),),
            level="O2",
            calibrate=(shapes.write_samples(folder / "samples", 36),),
            preprocess=str(folder / "shapes.json"),
            min_stages=2,
            max_stages=2,
            timeout_s=110,
        )
        await cluster.serve("tests.fakes.shapes:trained", eight)
        yield cluster


async def test_token_ids_and_a_mask_are_answered_exactly(small: LocalCluster) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the weights a factory is called with
        net = nets.encoder().eval()
    random = np.random.default_rng(1)
    async with Client(small.broker.url) as client:
        for _ in range(3):
            ids = random.integers(0, 50, (1, 12))
            mask = np.arange(12)[None] < random.integers(1, 13)
            inputs = {"ids": ids, "mask": mask.astype(np.int64)}
            result = await client.infer("encoder", inputs, tensors=True)
            with torch.inference_mode():
                expected = net(**{name: torch.from_numpy(a) for name, a in inputs.items()})
            assert len(set(result.nodes)) == 2
            assert result.tensors is not None
            for got, want in zip(result.tensors.values(), expected.values(), strict=True):
                assert np.abs(got - want.numpy()).max() <= 1e-5 * np.abs(want.numpy()).max()


async def test_a_batch_of_token_ids_is_answered_exactly_and_in_order(small: LocalCluster) -> None:
    """In micro-batches of every size that is tried; what cannot be computed is an error in its place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.encoder().eval()
    random = np.random.default_rng(2)
    async with Client(small.broker.url) as client:
        for bad in (None, 3, None, None):
            items: list[dict[str, Array]] = [
                {"ids": random.integers(0, 50, (1, 12)), "mask": np.ones((1, 12), np.int64)}
                for _ in range(32)
            ]
            if bad is not None:
                items[bad]["ids"][0, 0] = 50
            results = await client.infer_batch("encoder", items, tensors=True)
            for index, (result, item) in enumerate(zip(results, items, strict=True)):
                assert isinstance(result, JobError) == (index == bad)
                if isinstance(result, JobError):
                    continue
                with torch.inference_mode():
                    expected = net(**{name: torch.from_numpy(a) for name, a in item.items()})
                assert result.tensors is not None
                for got, want in zip(result.tensors.values(), expected.values(), strict=True):
                    assert np.abs(got - want.numpy()).max() <= 1e-5 * np.abs(want.numpy()).max()
        (state,) = [m for m in (await client.status()).models if m.model == "encoder"]
        row = state.pipelines[0].micro_batch
        assert row is not None
        assert row.most > 1


async def test_wrong_inputs_are_named_and_the_next_job_is_answered(small: LocalCluster) -> None:
    ones = np.ones((1, 12), np.int64)
    async with Client(small.broker.url) as client:
        wrong: list[dict[str, Array] | Array]
        wrong = [{"ids": ones}, {"ids": ones, "mask": ones.astype(np.float32)}, ones]
        for inputs in wrong:
            with pytest.raises(JobError) as caught:
                await client.infer("encoder", inputs)
            assert caught.value.code == ErrorCode.BAD_INPUT
            assert "mask" in str(caught.value)
        with pytest.raises(JobError, match=r"index|indices|range"):
            await client.infer("encoder", {"ids": ones * 50, "mask": ones})
        assert (await client.infer("encoder", {"ids": ones, "mask": ones})).top == ()


async def test_an_image_for_a_model_without_a_transform(
    small: LocalCluster, tmp_path: Path
) -> None:
    async with Client(small.broker.url) as client:
        with pytest.raises(JobError, match=r"--preprocess and --labels") as caught:
            await client.infer("my-net", JPEG)
        assert caught.value.code == ErrorCode.BAD_INPUT
        result = await client.infer("my-net", np.zeros((1, 3, 16, 16), np.float32))
        assert len(result.top) == 5


async def test_int8_is_right_about_images_and_says_that_it_is_not_exact(
    small: LocalCluster,
) -> None:
    random = np.random.default_rng(11)
    async with Client(small.broker.url) as client:
        (state,) = [m for m in (await client.status()).models if m.model == "shapes"]
        assert (state.level, state.runtime) == ("O2", "onnxruntime")
        assert state.quantisation is not None
        assert state.quantisation.agreement_ratio > 0.9
        assert state.options.min_stages == len(state.pipelines[0].stages) == 2
        right = 0
        for label in range(12):
            picture = shapes.draw(label % 6, random)
            result = await client.infer("shapes", shapes.png(picture))
            assert not result.exact
            assert len(set(result.nodes)) == 2
            right += result.top[0].index == label % 6
        assert right >= 10
