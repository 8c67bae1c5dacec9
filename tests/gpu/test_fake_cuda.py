"""What can be known of the GPU path without a GPU: devices, hidden waits and launches, on fake CUDA tensors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent

# Launches of a gradient and of a forward of the policy: none may need more. Without cuDNN an LSTM is several launches a row.
BOUNDS = {
    "atari_shallow": (205, 40),
    "atari_shallow, LSTM": (515, 55),
    "impala_shallow": (195, 30),
    "impala_shallow, LSTM": (505, 55),
    "impala_resnet": (285, 65),
    "impala_resnet, LSTM": (600, 90),
    "mlp": (160, 30),
    "mlp, LSTM": (465, 50),
    "mlp, PopArt": (265, 30),
}
UPDATE = {"mlp, PopArt": 70}
"""Launches of an update, 20 for all others."""
MODELS = pytest.mark.parametrize("model", BOUNDS)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What `fake_cuda.py` prints, run with the library preloaded that lets autograd believe in CUDA."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    if torch.version.cuda or torch.version.hip:
        pytest.skip("a PyTorch that has a GPU's own code needs no pretence")
    library = tmp_path_factory.mktemp("no_cuda") / "no_cuda.so"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    options = ["-shared", "-fPIC", "-std=c++17", "-w", abi, f"-I{TORCH / 'include'}"]
    subprocess.run([compiler, *options, HERE / "no_cuda.cpp", "-o", library], check=True)
    preloaded = [library, TORCH / "lib" / "libtorch_cpu.so", TORCH / "lib" / "libc10.so"]
    done = subprocess.run(
        [sys.executable, HERE / "fake_cuda.py"],
        env={**os.environ, "LD_PRELOAD": ":".join(map(str, preloaded))}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@MODELS
def test_learner_and_policy_run_without_a_tensor_on_another_device(figures, model):
    assert figures[model].get("error") is None
    assert figures[model]["apply"]["by_name"]["addcdiv"] == 1  # RMSProp's step was there


@MODELS
def test_the_host_waits_for_actions_and_logits_alone(figures, model):
    assert figures[model]["gradient"]["waits"] == 0
    assert figures[model]["apply"]["waits"] == 0
    assert figures[model]["policy"]["waits"] == 2


@MODELS
def test_no_more_is_launched_than_today(figures, model):
    gradient, policy = BOUNDS[model]
    assert figures[model]["gradient"]["launches"] <= gradient, figures[model]["gradient"]
    assert figures[model]["policy"]["launches"] <= policy, figures[model]["policy"]
    assert figures[model]["apply"]["launches"] <= UPDATE.get(model, 20), figures[model]["apply"]


def test_mistakes_are_found(figures):
    assert "same device" in figures["a tensor on the CPU"]["error"]
    assert "DataDependentOutputException" in figures["a number that the host asks for"]["error"]
    assert figures["numbers that are copied to the host"]["gradient"]["waits"] == 1
