"""Runs that can be killed: checkpoints with everything in them, and how a run goes on from one, to the last bit."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from .callback import load_callbacks, stateful_callbacks
from .checkpoints import (
    STAGING,
    CheckpointError,
    all_checkpoints,
    clear_staging,
    faults,
    newest_checkpoint,
    publish,
    rotate,
    start_staging,
)
from .hindsight import HindsightReward
from .ppo_base import RepairedPPOTrainer
from .processes import from_all
from .tasks import TaskSampler
from .trajectory_log import EPISODES_NAME, TrajectoryLog

TRAINABLE_NAME = "trainable.safetensors"
LOOP_STATE_NAME = "loop_state_{rank}.json"
TRAINER_STATE_NAME = "trainer_state.json"


class ResumableTrainer(RepairedPPOTrainer):
    """Saves all that decides how a run goes on, and takes it up again.

    Beside what transformers puts into a checkpoint (model, optimizer, schedule, the global random states, the
    trainer's state): the trained parameters of policy and value model by name, for any architecture and adapter;
    position and random state of the task queue, of the minibatches and of the judge; the judge's statistics and gate;
    whatever callbacks with `save_state(directory)` and `load_state(directory)` have to say; the log's unfinished
    window; and how long the files of episodes were.
    """

    hindsight: HindsightReward | None
    _sampler: TaskSampler
    _rng: np.random.Generator
    _logs: dict[str, TrajectoryLog]
    state: Any
    _staging: Path | None = None
    _terminated = False

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes `checkpoint-<step>` whole or not at all, and deletes what `save_total_limit` has no room for.

        Raises:
            CheckpointError: it could not be written, e.g. because the disk is full; earlier ones are as they were.
        """
        if self.is_plain_ppo:
            super()._save_checkpoint(model, trial)
            return
        args, accelerator = self.args, self.accelerator
        name = f"checkpoint-{self.state.global_step}"
        target = Path(args.output_dir) / name
        try:
            if args.should_save:
                start_staging(args.output_dir)
            accelerator.wait_for_everyone()
            self._staging = Path(args.output_dir) / STAGING
            with self._pushes_held():
                super()._save_checkpoint(model, trial)
            self._save_loop(self._staging / name)
            accelerator.wait_for_everyone()
            if args.should_save:
                publish(self._staging / name, target)
                self._finish_push_before_deleting()
                rotate(args.output_dir, args.save_total_limit, self.state.best_model_checkpoint)
            accelerator.wait_for_everyone()
        except Exception as error:
            # Writers wrap what the system says ("No space left on device") in errors of all kinds.
            whole = [folder for folder in all_checkpoints(args.output_dir) if folder != target]
            last = f"{whole[-1]} is as it was: resume from it" if whole else "there is no earlier one"
            raise CheckpointError(
                f"{target} could not be written: {error}. {last}. Make room on the disk, or keep fewer checkpoints "
                "with save_total_limit"
            ) from error
        finally:
            self._staging = None
            if args.should_save:
                clear_staging(args.output_dir)
        if args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _get_output_dir(self, trial: Any) -> str:
        """transformers writes checkpoints in here."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_loop(self, folder: Path) -> None:
        """What transformers does not know of. Random states are each process's own."""
        folder.mkdir(parents=True, exist_ok=True)  # another process may not have come so far
        path = folder / LOOP_STATE_NAME.format(rank=self.accelerator.process_index)
        path.write_text(json.dumps(self._loop_state()), encoding="utf-8")
        if not self.args.should_save or self.args.save_only_model:
            return
        trained = {name: p.detach().contiguous() for name, p in self._trained_parameters()}
        safetensors.torch.save_file(trained, folder / TRAINABLE_NAME)
        for callback in stateful_callbacks(self.callback_handler.callbacks):
            callback.save_state(str(folder))

    def _loop_state(self) -> dict[str, Any]:
        return {
            "run": self._run_identity(),
            "minibatches": self._rng.bit_generator.state,
            "tasks": self._sampler.state_dict(),
            "hindsight": None if self.hindsight is None else self.hindsight.state_dict(),
            "log_window": dict(self._window),
            "log_bytes": {name: log.num_bytes for name, log in self._logs.items()},
        }

    def _run_identity(self) -> dict[str, Any]:
        """What has to be the same for a run to go on as if nothing had happened."""
        return {
            "processes": self.accelerator.num_processes,
            "batch_size": self.args.batch_size,
            "train_dataset rows": self.train_dataset_len,
            "hindsight": self.hindsight is not None,
            "reference policy": self._reference_fingerprint,
        }

    @cached_property
    def _reference_fingerprint(self) -> str:
        """Of a few numbers of every parameter: a reference made from other weights would pull the policy elsewhere."""
        reference = self.policy if self.ref_model is None else self.ref_model
        frozen = (p.detach() for p in reference.parameters() if p.numel() and not p.requires_grad)
        return f"{sum(float(p.flatten()[:64].double().sum()) for p in frozen):.12g}"

    def _trained_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.actor_critic.named_parameters() if p.requires_grad)

    # Going on

    def _find_checkpoint(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None) -> Path | None:
        """The checkpoint to go on from, known to be whole; `None` for a new run.

        Raises:
            CheckpointError: there is none, or the one that is named is broken.
        """
        if str(resume_from_checkpoint).lower() in ("none", "false"):
            return None
        if str(resume_from_checkpoint).lower() == "true":  # on a command line everything is a string
            return newest_checkpoint(self.args.output_dir)
        assert isinstance(resume_from_checkpoint, str | os.PathLike)
        folder = Path(resume_from_checkpoint)
        wrong = faults(folder)
        if wrong:
            raise CheckpointError(
                f"resume_from_checkpoint={str(folder)!r} is no whole checkpoint: {'; '.join(wrong)}; name another "
                "one, or pass True for the newest whole one"
            )
        return folder

    def _restore(self, folder: Path) -> dict[str, int]:
        """Everything but the global random states, see `_restore_random_states`.

        Returns:
            `dict[str, int]`: bytes that belong to the run so far, of each of its files of episodes.

        Raises:
            CheckpointError: it is of another kind of run, or has the model only.
        """
        path = folder / LOOP_STATE_NAME.format(rank=self.accelerator.process_index)
        if not (folder / TRAINABLE_NAME).exists():
            raise CheckpointError(
                f"{folder} has no {TRAINABLE_NAME}: it was saved with save_only_model=True and cannot be resumed; "
                "start a new run from its model"
            )
        loop = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"run": {}}
        self._check_identity(folder, loop["run"])
        self._load_trained(folder / TRAINABLE_NAME)
        self._load_optimizer_and_scheduler(str(folder))
        if hasattr(self, "_load_scaler"):
            self._load_scaler(str(folder))
        self._load_trainer_state(folder / TRAINER_STATE_NAME)
        self._rng.bit_generator.state = loop["minibatches"]
        self._sampler.load_state_dict(loop["tasks"])
        self._window.clear()
        self._window.update(loop["log_window"])
        if self.hindsight is not None:
            self.hindsight.load_state_dict(loop["hindsight"])
        load_callbacks(self.callback_handler.callbacks, str(folder), self.hindsight)
        known = loop["log_bytes"]
        # A checkpoint of version 0.1 knows one file, or none.
        return known if isinstance(known, dict) else {} if known is None else {EPISODES_NAME: known}

    def _check_identity(self, folder: Path, known: Mapping[str, Any]) -> None:
        own = self._run_identity()
        names = [name for name, value in own.items() if known.get(name) != value]
        differ = [f"{name}: {known.get(name)!r} then, {own[name]!r} now" for name in names]
        if differ:
            raise CheckpointError(
                f"{folder} is of another run ({'; '.join(differ)}). Make the trainer with the models, dataset and "
                "batch sizes that the run began with (the model too: the trained weights come from the checkpoint, "
                "but the reference policy is made from the model), or start a new run"
            )

    def _load_trained(self, path: Path) -> None:
        own = dict(self._trained_parameters())
        with safetensors.safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != own.keys():
                other = sorted(names ^ own.keys())
                raise CheckpointError(
                    f"{path.parent} trains other parameters than this trainer, e.g. {other[0]!r}; is peft_config, or "
                    "value_model, the one that the run began with?"
                )
            with torch.no_grad():
                for name, parameter in own.items():
                    stored = file.get_tensor(name)
                    if stored.shape != parameter.shape:
                        raise CheckpointError(
                            f"{path.parent}: {name!r} has shape {tuple(stored.shape)}, here it is "
                            f"{tuple(parameter.shape)}; make the trainer with the model that the run began with"
                        )
                    parameter.copy_(stored)

    def _load_trainer_state(self, path: Path) -> None:
        here = self.state
        self.state = type(here).load_from_json(str(path))
        self.state.is_local_process_zero = here.is_local_process_zero
        self.state.is_world_process_zero = here.is_world_process_zero
        self.state.stateful_callbacks = here.stateful_callbacks

    def _restore_random_states(self, folder: Path) -> None:
        """python, numpy, torch: last, because anything may draw from them while the rest is put back."""
        self._load_rng_state(str(folder))

    # SIGTERM

    @contextmanager
    def _finish_on_sigterm(self) -> Iterator[None]:
        """SIGTERM, what schedulers send first, lets the update end, saves a checkpoint and leaves with status 143.

        A second one ends the process at once.
        """
        self._terminated = False
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's business
            return
        before = signal.getsignal(signal.SIGTERM)

        def remember(*_: Any) -> None:
            self._terminated = True
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

        signal.signal(signal.SIGTERM, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if self._terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def _heed_sigterm(self) -> None:
        """At the end of an update: all processes stop if one was told to."""
        if any(from_all(self.accelerator, self._terminated)):
            self._terminated = True
            self.control.should_save = self.control.should_training_stop = True
