"""What cdpo/train/trl_*.py rely on inside TRL and transformers. Where this fails, they moved: the message says what."""

import dataclasses
import inspect
import re
import socket
from typing import Any

import pytest
import torch
import transformers.trainer
from transformers import Trainer, TrainingArguments
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from cdpo.train import trl_exact, trl_head
from cdpo.train.loss_types import TRL_LOSSES

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
    # the loss from outputs that the model has given already (trl_loss), row by row (score_outputs)
    (DPOTrainer, "compute_loss", "self._compute_loss(model, inputs, return_outputs)"),
    (DPOTrainer, "_compute_loss", 'self._metrics[mode]["rewards/margins"].append('),
    (DPOTrainer, "_compute_loss", "outputs = model(**model_kwargs"),
    (DPOTrainer, "_compute_loss", "outputs.log_probs[:, -seq_len:]"),
    # the reference: no adapter, or its copy
    (DPOTrainer, "compute_ref_log_probs", 'adapter_name="ref" if "ref" in unwrapped_model.peft_config else None'),
    (DPOTrainer, "compute_ref_log_probs", "if self.ref_model is None and is_peft_model(self.model)"),
    (DPOTrainer, "__init__", "if is_peft_model(self.model) or (args.precompute_ref_log_probs"),
    # the second head of add_sampling_head is laid over TRL's, of which it repeats the last lines
    (trl_utils, "add_fused_lm_head", "model.forward = types.MethodType(_fused_forward, model)"),
    (trl_utils, "add_fused_lm_head", "getattr(self, backbone_attr)(*args, **kwargs)"),
    (trl_utils, "add_fused_lm_head", "hidden_states = backbone_outputs.last_hidden_state[:, :-1]"),
    (trl_utils, "add_fused_lm_head", "labels = labels[:, 1:]"),
    (trl_utils, "add_fused_lm_head", "hidden_states[mask] if compact"),
    # its own way of passing over batches is replaced where Trainer calls it; an adapter beside `ref` is read by us
    (Trainer, "_run_epoch", "train_dataloader = skip_first_batches(train_dataloader, steps_trained_in_current_epoch)"),
    (Trainer, "_load_from_checkpoint", "adapter_subdirs"),
    (Trainer, "_save_checkpoint", "isinstance(cb, ExportableState)"),
    # cdpo/train/trl_resume.py: what Trainer sums between two logs, and sets to nothing before training begins
    (Trainer, "_inner_training_loop", "self._tr_loss = torch.tensor(0.0, device=args.device)"),
    (Trainer, "_inner_training_loop", "self._total_loss_scalar = 0.0"),
    (Trainer, "_inner_training_loop", "self._initial_global_step = self.state.global_step"),
    (Trainer, "_inner_training_loop", "self._globalstep_last_logged = self.state.global_step"),
    (Trainer, "_maybe_log_save_evaluate", "nested_gather(tr_loss, self.args.parallel_mode).mean().item()"),
    (Trainer, "_maybe_log_save_evaluate", "tr_loss -= tr_loss"),
    (Trainer, "_maybe_log_save_evaluate", "self.control.should_save = is_new_best_metric"),
    (Trainer, "_maybe_log_save_evaluate", "self._save_checkpoint(model, trial)"),
    (Trainer, "_finalize_training", "self.state.global_step - self._initial_global_step"),
    # what a checkpoint is made of, and how it is read
    (Trainer, "_save_checkpoint", "self.save_model(output_dir, _internal_call=True)"),
    (Trainer, "_save_checkpoint", "self._save_optimizer_and_scheduler(output_dir)"),
    (Trainer, "_save_checkpoint", "self._save_scaler(output_dir)"),
    (Trainer, "_save_checkpoint", "self._save_rng_state(output_dir)"),
    (Trainer, "_save_checkpoint", "self.state.stateful_callbacks[cb_name] = cb_state"),
    (Trainer, "_save_checkpoint", "self.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))"),
    (Trainer, "_save_rng_state", 'f"rng_state_{self.args.process_index}.pth"'),
    (Trainer, "_determine_best_metric", "SaveStrategy.BEST]"),
    (Trainer, "_determine_best_metric", "self.state.best_global_step = self.state.global_step"),
    (Trainer, "_finalize_training", "self.state.best_model_checkpoint is not None and self.args.save_total_limit == 1"),
    (Trainer, "_load_best_model", "self._issue_warnings_after_load(load_result)"),
    (Trainer, "_init_training_state", "resume_from_checkpoint, trial\n    ) -> tuple"),
    (Trainer, "_init_training_state", "self.state = TrainerState.load_from_json("),
    (Trainer, "_init_training_state", "self.state.global_step % num_update_steps_per_epoch"),
    (
        Trainer,
        "_inner_training_loop",
        "max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint,",
    ),
    (Trainer, "_load_from_checkpoint", "load_result = model.load_state_dict(state_dict, False)"),
    (Trainer, "_prepare_for_training", "self._load_optimizer_and_scheduler(resume_from_checkpoint)"),
    (Trainer, "_prepare_for_training", "self._load_scaler(resume_from_checkpoint)"),
    (Trainer, "_run_epoch", "self._load_rng_state(resume_from_checkpoint)"),
    (Trainer, "_load_rng_state", "with safe_globals():"),
    (Trainer, "create_optimizer", "if self.optimizer is None:"),
    (Trainer, "create_optimizer", "return self.optimizer"),
)
#: how the kernel of the language-model head is called, by position
KERNEL = (
    "ctx",
    "hidden",
    "weight",
    "bias",
    "targets",
    "temperature",
    "chunk_size",
    "final_logit_softcapping",
    "logit_scale",
    "outputs",
)
#: what a model with TRL's head gives, and SampledOutput inherits
OUTPUTS = {"loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss"}


@pytest.mark.parametrize(("cls", "method", "text"), RELIED_ON)
def test_trl_is_as_the_adapter_expects(cls: Any, method: str, text: str) -> None:
    function = getattr(cls, method, None)
    assert function is not None, (
        f"TRL moved: {cls.__name__} has no {method} any more; see cdpo/train/trl_adapter.py and beside it"
    )
    assert text in inspect.getsource(function), f"TRL moved: {cls.__name__}.{method} no longer holds `{text}`"


def test_the_kernel_of_the_head_takes_its_arguments_in_this_order() -> None:
    taken = tuple(inspect.signature(trl_utils._ChunkedLogProbFunction.forward).parameters)
    assert taken == KERNEL, "TRL moved: see add_sampling_head in cdpo/train/trl_head.py"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kernel_gives_log_probabilities_first(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, generator=generator) for size in ((5, 8), (11, 8), (11,)))
    targets = torch.tensor([0, 3, 10, 3, 7])
    chunk = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    found = trl_utils._ChunkedLogProbFunction.apply(
        hidden, weight, bias, targets, temperature, chunk, None, 1.0, ("log_probs",)
    )[0]
    logits = (hidden @ weight.T + bias) / temperature
    torch.testing.assert_close(found, logits.log_softmax(-1)[torch.arange(5), targets])


def test_outputs_have_the_fields_that_rows_are_taken_from() -> None:
    fields = {each.name for each in dataclasses.fields(trl_utils.FusedCausalLMOutput)}
    assert fields == OUTPUTS, "TRL moved: see run_model and _one_of in cdpo/train/trl_adapter.py"
    assert {each.name for each in dataclasses.fields(trl_head.SampledOutput)} == OUTPUTS | {"sampling_logps"}


def test_a_head_that_scales_its_logits_is_known_by_the_names_trl_reads() -> None:
    source = inspect.getsource(trl_utils.add_fused_lm_head)
    read = set(re.findall(r'getattr\(text_config, "(\w+)", None\)', source)) - {"output_router_logits"}
    assert read == set(trl_head.LOGIT_SCALES), "TRL moved: see LOGIT_SCALES in cdpo/train/trl_head.py"


def test_trainer_finds_the_skipping_of_batches_by_its_module() -> None:
    """It is replaced there while a training runs."""
    assert "skip_first_batches" in Trainer._run_epoch.__code__.co_names
    assert Trainer._run_epoch.__globals__ is vars(transformers.trainer)


def test_trainer_gives_callbacks_a_state_before_and_after_a_checkpoint() -> None:
    """A callback's state is there for one that begins, too: `Remembers` tells them apart by the steps taken."""
    begin = inspect.getsource(Trainer._inner_training_loop)
    assert begin.index("self._tr_loss = ") < begin.index("callback_handler.on_train_begin"), "see _RunOn in trl_resume"
    # it would put new callbacks into the place of those that were given
    assert not TrainingArguments("x", use_cpu=True).restore_callback_states_from_checkpoint


def test_all_stable_losses_of_trl_are_offered() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(TRL_LOSSES) == {line.split('"')[1] for line in source.splitlines() if 'if loss_type == "' in line}


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
    with trl_exact.no_gathering(accelerator):
        assert accelerator.gather(torch.ones(1)).shape == (1,)
    assert len(accelerator.gather(1)) == 2
