"""FSDP2 on two real processes (torchrun, gloo): what may differ in length between them, and what is refused."""

from typing import Any

import numpy as np
import pytest
from test_callback import EPISODES, Run, calibration, make_policy
from torchrun import left_by_both

from trl_mise.backends import TransformersBackend
from trl_mise.generation import Sampling
from trl_mise.sharding import gathered, is_sharded


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return left_by_both("two_processes_fsdp.py", tmp_path_factory.mktemp("fsdp"))


def test_a_process_may_generate_and_score_more_often_than_another(both: list[dict[str, Any]]) -> None:
    policy = make_policy()
    with TransformersBackend().session(policy, Sampling(0.0, 4, ())) as generate:
        sampled = generate([list(episode.token_ids[:4]) for episode in EPISODES])
    scores = Run(calibration()).hindsight.score(policy, EPISODES).scores
    for left in both:
        assert left["gathered"] and left["sharded again"] and left["gradients"]
        assert left["sampled"] == sampled
        np.testing.assert_allclose(left["scores"], scores, atol=1e-6)


def test_a_part_may_come_before_the_whole(both: list[dict[str, Any]]) -> None:
    assert all(left["wrapped"] for left in both)


def test_calibration_refuses_a_sharded_policy(both: list[dict[str, Any]]) -> None:
    """Its passes do not go through the module that puts the parameters together; better said than done wrong."""
    for left in both:
        assert "calibration_target='sum'" in left["refused"] and "calibration_target='none'" in left["refused"]


def test_a_model_that_is_not_sharded_is_left_alone() -> None:
    model = make_policy()
    kept = list(model.parameters())
    assert not is_sharded(model)
    with gathered(model):
        assert all(a is b for a, b in zip(model.parameters(), kept, strict=True))
