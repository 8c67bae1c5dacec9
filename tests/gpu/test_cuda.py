"""What only a GPU shows: the same losses and actions as on the CPU, copies on their own stream, whole runs of both beasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import rows
from gymnasium import spaces
from torch.testing import assert_close

from beast.acting.models import ModelChoice
from beast.acting.policy import Policy
from beast.core.algorithms import PlainLoss, impala
from beast.core.data import ArraySpec, Batch, EnvOutput, map_nested
from beast.core.distributions import distribution_for
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.optimisers import OptimiserConfig
from beast.store.weights import Weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

T, B, STACK = 20, 8, 4
SPACE, ACTIONS = spaces.Box(0, 255, (STACK, 84, 84), np.uint8), spaces.Discrete(6)
SPEC = ArraySpec(SPACE.shape, np.dtype(np.uint8), stack=STACK)
MODELS = pytest.mark.parametrize("model", ["atari_shallow", "impala_shallow", "impala_resnet"])
LSTM = pytest.mark.parametrize("use_lstm", [False, True], ids=["feed-forward", "lstm"])


def batch_of(choice: ModelChoice, seed: int) -> Batch:
    """As the store gives it, frames stored once."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        observation=torch.randint(256, (B, STACK + T + 1, 84, 84), generator=generator, dtype=torch.uint8),
        reward=torch.randn(T + 1, B, generator=generator),
        terminated=torch.rand(T + 1, B, generator=generator) < 0.05,
        truncated=torch.zeros(T + 1, B, dtype=torch.bool),
        first=torch.rand(T + 1, B, generator=generator) < 0.05,
        last_action=torch.randint(6, (T + 1, B), generator=generator),
        action=torch.randint(6, (T, B), generator=generator),
        behaviour_logits=torch.randn(T, B, 6, generator=generator),
        core_state=choice.build().initial_state(B),  # type: ignore[operator]
        policy_version=torch.zeros(T, B, dtype=torch.int64),
    )


class Taught:
    """A learner, and where its gradients come from."""

    def __init__(self, name: str, choice: ModelChoice, dtype: torch.dtype, compile_model: bool = False) -> None:
        torch.manual_seed(0)
        model, device = choice.build(), torch.device(name)
        masters = master_parameters(model)
        algorithm = PlainLoss(impala.Config(), distribution_for(ACTIONS), impala.loss)
        self.gradients = Gradients(FlatModel(model, device, dtype), algorithm, SPEC, device, compile_model)
        self.learner = Learner(self.gradients, OptimiserConfig(), 10**9, masters)

    def learn(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One update; what came of it."""
        gradients = self.gradients.of(self.gradients.to_device(batch))
        (update,) = [self.learner.apply(gradient, T * B) for gradient in gradients]
        return update.metrics


@MODELS
@LSTM
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 5e-2)])
def test_losses_are_those_of_the_cpu(model: str, use_lstm: bool, dtype: torch.dtype, tolerance: float) -> None:
    choice = ModelChoice(model, use_lstm, SPACE, ACTIONS)
    cpu, cuda = Taught("cpu", choice, dtype), Taught("cuda", choice, dtype)
    for seed in range(3):
        batch = batch_of(choice, seed)
        expected, got = cpu.learn(batch), cuda.learn(batch)
        for name, value in expected.items():
            assert_close(got[name].cpu().float(), value.float(), rtol=tolerance, atol=tolerance * 100)


@LSTM
def test_a_compiled_model_has_the_losses_of_the_cpu(use_lstm: bool) -> None:
    choice = ModelChoice("impala_shallow", use_lstm, SPACE, ACTIONS)
    cpu, cuda = Taught("cpu", choice, torch.float32), Taught("cuda", choice, torch.float32, compile_model=True)
    for seed in range(3):
        batch = batch_of(choice, seed)
        expected, got = cpu.learn(batch), cuda.learn(batch)
        assert_close(got["total_loss"].cpu(), expected["total_loss"], rtol=2e-3, atol=0.2)


def test_a_batch_staged_by_another_thread_while_one_is_learned_arrives_whole() -> None:
    choice = ModelChoice("impala_shallow", False, SPACE, ACTIONS)
    taught = Taught("cuda", choice, torch.bfloat16)
    batches = [batch_of(choice, seed) for seed in range(4)]
    staged = [taught.gradients.to_device(batch) for batch in batches]
    for batch, there in zip(batches, staged, strict=True):
        taught.learn(batches[0])
        assert there.ready is not None
        there.ready.synchronize()
        map_nested(lambda a, b: assert_close(a.cpu(), b), tuple(there.batch), tuple(batch))


@MODELS
@LSTM
def test_a_policy_chooses_the_same_actions_on_both(model: str, use_lstm: bool) -> None:
    choice = ModelChoice(model, use_lstm, SPACE, ACTIONS)
    torch.manual_seed(0)
    source = choice.build()
    weights = Weights(sum(p.numel() for p in source.parameters()), torch.float32)
    weights.publish(torch.cat([p.detach().reshape(-1) for p in source.parameters()]), 0)
    policies = [Policy(choice, torch.float32, weights, B, torch.device(device)) for device in ("cpu", "cuda")]
    generator = np.random.default_rng(0)
    for _ in range(5):
        nothing = np.full(B, np.nan, np.float32)
        env = EnvOutput(
            generator.integers(0, 256, (B, *SPACE.shape), dtype=np.uint8), np.zeros(B, np.float32), np.zeros(B, bool),
            np.zeros(B, bool), np.zeros(B, bool), np.zeros(B, np.int64), nothing, nothing, np.zeros((B, 0), np.float32),
        )  # fmt: skip
        noise = policies[0].distribution.noise(generator, B)
        answers = []
        for policy in policies:
            policy.refresh()
            answers.append(policy.act(env, noise))
        one, other = answers
        assert_close(one.logits, other.logits, rtol=1e-2, atol=1e-2)
        # Where two actions are as good as equal, rounding decides.
        assert (one.action == other.action).mean() >= 0.75


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
@LSTM
def test_whole_runs_on_the_gpu_learn_catch(start, tmp_path, trainer: str, use_lstm: bool) -> None:
    flags = [
        "--env",
        "Catch-v0",
        "--trainer",
        trainer,
        "--device",
        "cuda",
        "--total_steps",
        200_000,
        "--report_every",
        1,
    ]
    program = start(*flags, "--xpid", "catch", *(["--use_lstm"] if use_lstm else [])).finish()
    assert program.code == 0, program.story()
    assert rows(tmp_path / "runs" / "catch")[-1]["mean_episode_return"] > 0.8


def test_both_beasts_act_for_all_actors_in_serial_mode(start, tmp_path) -> None:
    for trainer in ("monobeast", "polybeast"):
        flags = ["--env", "Catch-v0", "--trainer", trainer, "--device", "cuda", "--num_actor_processes", 0]
        program = start(*flags, "--total_steps", 100_000, "--report_every", 1, "--xpid", trainer).finish()
        assert program.code == 0, program.story()
        assert rows(tmp_path / "runs" / trainer)[-1]["mean_episode_return"] > 0.5


@pytest.mark.parametrize("inference", ["thread", "process"])
def test_inference_on_the_gpu_in_a_thread_and_in_a_process(start, inference: str) -> None:
    flags = ["--env", "PongNoFrameskip-v4", "--trainer", "polybeast", "--device", "cuda", "--inference", inference]
    program = start(*flags, "--total_steps", 20_000).finish()
    assert program.code == 0, program.story()
