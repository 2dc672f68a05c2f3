"""What cdpo/train/trl_adapter.py relies on inside TRL. Where this fails, TRL moved: the message says what."""

import inspect
import socket

import pytest
import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from cdpo.train import trl_adapter

RELIED_ON = (
    (DPOTrainer, "_compute_loss", "zip(self.loss_types, self.loss_weights"),
    (DPOTrainer, "_compute_loss", "per_sequence_loss.mean() * loss_weight"),
    (DPOTrainer, "_compute_loss", 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]'),
    (DPOTrainer, "_compute_loss", 'mode = "train" if self.model.training else "eval"'),
    (DPOTrainer, "_compute_loss", "labels=labels, fused_lm_head=True"),
    (DPOTrainer, "_compute_loss", "if self.precompute_ref_logps:"),
    (DPOTrainer, "_prepare_dataset", "def _prepare_dataset"),
    (DPOTrainer, "_precompute_ref_logps", "def _precompute_ref_logps"),
    (DPOTrainer, "compute_ref_log_probs", "ref_logps.chunk(2, dim=0)"),
    (DPOTrainer, "__init__", 'model.add_adapter("ref", default_config)'),
    (RewardTrainer, "compute_loss", "logsigmoid(rewards_chosen - rewards_rejected).mean()"),
    (RewardTrainer, "compute_loss", "torch.mean((rewards_chosen + rewards_rejected) ** 2)"),
    (RewardTrainer, "_prepare_dataset", "def _prepare_dataset"),
    (SFTTrainer, "compute_loss", "per_token_loss.sum() / torch.as_tensor(num_tokens)"),
    (SFTTrainer, "compute_loss", "loss * (self.accelerator.num_processes"),
    (SFTTrainer, "_prepare_dataset", "def _prepare_dataset"),
    (SFTTrainer, "_send_telemetry", "def _send_telemetry"),
)


@pytest.mark.parametrize(("cls", "method", "text"), RELIED_ON)
def test_trl_is_as_the_adapter_expects(cls: type, method: str, text: str) -> None:
    function = getattr(cls, method, None)
    assert function is not None, f"TRL moved: {cls.__name__} has no {method} any more; see cdpo/train/trl_adapter.py"
    assert text in inspect.getsource(function), f"TRL moved: {cls.__name__}.{method} no longer holds `{text}`"


def test_all_stable_losses_of_trl_are_offered() -> None:
    from typing import get_args

    from cdpo.pipelines.dpo import LossType

    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(get_args(LossType)) == {
        line.split('"')[1] for line in source.splitlines() if 'if loss_type == "' in line
    }


def test_training_opens_no_connection(world, monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    world.run("SFT", {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 8})


def test_gathering_is_back_after_a_loss() -> None:
    class Accelerator:
        def gather(self, value):
            return [value, value]

        gather_for_metrics = gather

    accelerator = Accelerator()
    with trl_adapter._no_gathering(accelerator):
        assert accelerator.gather(torch.ones(1)).shape == (1,)
    assert len(accelerator.gather(1)) == 2
