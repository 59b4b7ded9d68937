"""What a trainer gives away: a model card beside every saved model, and pushes to the hub that can fail harmlessly."""

import copy
import glob
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress
from transformers.utils.hub import hf_api

from .card_facts import facts_of
from .model_card import CARD_NAME, card_text, edited_card_kept, is_edited, write_card


class PushError(RuntimeError):
    """The model did not arrive on the hub; says why, and where it is on this machine."""


class PublishingTrainer(Trainer):
    """Put before a class that extends transformers' `Trainer`; saving, pushing and the hub's options are its own.

    While training goes on, a checkpoint is pushed from its own folder, which nobody writes to any more, not from
    `output_dir`, where logs grow while they are uploaded. Logs arrive with `push_to_hub`, at the end.
    """

    args: Any
    _paper: Mapping[str, str]
    hub_model_id: str | None
    push_in_progress: Any
    _card_options: tuple[type, ...] = ()
    """Dataclasses whose options are told where they are not at their defaults."""
    _saved: Sequence[str] | None = None
    """Names of the files that a model's last saving left, in its folder."""
    _is_holding_pushes = False

    # What a subclass says

    @property
    def describes_itself(self) -> bool:
        """Whether it trains in its own way; otherwise everything here is the parent class's."""
        raise NotImplementedError

    @property
    def policy(self) -> nn.Module:
        """The unwrapped policy."""
        raise NotImplementedError

    def _card_environment(self) -> Any:
        """What makes the environments, if there are any."""
        raise NotImplementedError

    def _save_files(self, folder: str) -> None:
        """Model, tokenizer, and what belongs to them; a subclass may add files."""
        super().save_model(folder, _internal_call=True)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model with its card, and with `push_to_hub=True` pushes it.

        Args:
            output_dir (`str`, *optional*): defaults to the trainer's.
        """
        if not self.describes_itself:
            super().save_model(output_dir, _internal_call)
            return
        folder = output_dir or self.args.output_dir
        if self.args.should_save:
            with edited_card_kept(folder) as is_kept:
                self._save_files(folder)
            if not is_kept:
                self._put_card(folder)
            self._leave_out_token(folder)
            self._saved = [p.relative_to(folder).as_posix() for p in sorted(Path(folder).rglob("*")) if p.is_file()]
        else:
            self._save_files(folder)  # parameters may have to be put together
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _leave_out_token(self, folder: str) -> None:
        """transformers saves its arguments with the hub's token in them, and pushes the file."""
        path = Path(folder) / TRAINING_ARGS_NAME
        if self.args.hub_token is not None and path.exists():
            args = copy.copy(self.args)
            args.hub_token = None
            torch.save(args, path)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
    ) -> None:
        """Writes the model card, `README.md` in `output_dir`; an edited one is left as it is.

        Args:
            model_name (`str`, *optional*): of the heading; by default the repository's, or the folder's.
            dataset_name (`str`, *optional*): that it was trained on.
            tags (`str` or `list[str]`, *optional*): beside the trainer's own.
            license (`str`, *optional*): the hub's name of one; none is assumed.
        """
        if not self.describes_itself:
            super().create_model_card(model_name, dataset_name, tags)
        elif self.is_world_process_zero():
            given = [tags] if isinstance(tags, str) else list(tags or ())
            self._write_card(
                self.args.output_dir, model_name=model_name, dataset_name=dataset_name, tags=given, license=license
            )

    def _put_card(self, folder: str) -> None:
        """Into a saved model's folder: the card that a person has edited in `output_dir`, or a new one."""
        edited = Path(self.args.output_dir) / CARD_NAME
        if is_edited(edited) and edited.parent.resolve() != Path(folder).resolve():
            shutil.copyfile(edited, Path(folder) / CARD_NAME)
        else:
            self._write_card(folder)

    def _write_card(self, folder: str, **given: Any) -> None:
        try:
            facts = facts_of(
                self,
                self.policy,
                environment=self._card_environment(),
                option_classes=self._card_options,
                paper=self._paper,
                **given,
            )
            write_card(card_text(facts), folder)
        except OSError:
            raise  # a full disk is the checkpoint's business
        except Exception as error:
            # Facts are texts of datasets, environments and configurations of others; a run is worth more than a card.
            warnings.warn(f"the model card could not be written: {type(error).__name__}: {error}", stacklevel=2)

    # Pushing

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.push_to_hub`; further arguments are those of [`create_model_card`].

        Raises:
            PushError: the hub could not be reached, or did not take it; everything is saved in `output_dir`.
        """
        if not self.describes_itself:
            return super().push_to_hub(*args, **kwargs)
        self._saved = None
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            if self._saved is None:  # it did not come so far, or cannot be saved, which then says so itself
                self.save_model(_internal_call=True)
            repository = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
            raise PushError(
                f"{repository} could not be pushed to the hub: {error}. Nothing is lost: the model is saved in "
                f"{self.args.output_dir}. Check token (hub_token, or `hf auth login`), hub_model_id and network, then "
                "call trainer.push_to_hub() again"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads a checkpoint in the background: its model, and with hub_strategy `"checkpoint"` all of it."""
        if not self.describes_itself:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        args, strategy = self.args, self.args.hub_strategy
        if self._is_holding_pushes or strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        self._tell_of_failed_pushes()
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        model_files = [glob.escape(name) for name in self._saved or ()]
        jobs = [self._upload(checkpoint_folder, message, allow_patterns=model_files)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            jobs.append(self._upload(checkpoint_folder, f"{message}, checkpoint", path_in_repo=place))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)

    def _upload(self, folder: str, message: str, **kwargs: Any) -> Any:
        return hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=message,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            run_as_future=True,
            **kwargs,
        )

    def _finish_current_push(self) -> None:
        """Waits for the uploads in the background, and tells of those that failed."""
        super()._finish_current_push()
        if self.describes_itself:
            self._tell_of_failed_pushes()

    def _tell_of_failed_pushes(self) -> None:
        """Each once; transformers never looks at what came of an upload."""
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", [])
        done = [job for job in jobs if job.done()]
        jobs[:] = [job for job in jobs if job not in done]
        errors = [error for job in done if not job.cancelled() and (error := job.exception()) is not None]
        if errors:
            warnings.warn(
                f"a push to {self.hub_model_id} failed: {errors[0]}. The checkpoints in {self.args.output_dir} are "
                "whole; training goes on, and the next push brings what is missing",
                stacklevel=2,
            )

    @contextmanager
    def _pushes_held(self) -> Iterator[None]:
        """While transformers saves a checkpoint that is not whole yet; the push is made afterwards."""
        self._is_holding_pushes = True
        try:
            yield
        finally:
            self._is_holding_pushes = False

    def _finish_push_before_deleting(self) -> None:
        """With `save_total_limit`, checkpoints go; the one that is being uploaded must not go yet."""
        if self.args.push_to_hub and self.args.save_total_limit:
            self._finish_current_push()
