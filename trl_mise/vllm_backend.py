"""Actions sampled by a vLLM server, through TRL's own client; the policy's weights go there before every rollout."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ._trl import vllm_classes
from .generation import Sampling
from .notices import warn_once
from .rollout import Generate, SampledIds

SERVER_HINT = (
    "start it first, on GPUs that the trainer does not use: trl vllm-serve --model <the policy>, or "
    'VLLM_SERVER_DEV_MODE=1 vllm serve <the policy> --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)


class VLLMBackend:
    """A [`GenerationBackend`] that asks a vLLM server.

    TRL's `VLLMGeneration` carries the weights (DeepSpeed and FSDP parameters gathered, adapters merged, names as vLLM
    has them) and its `VLLMClient` the questions. Every process asks on its own, as the episodes of one end earlier
    than those of another; only the first one sends weights, and the others wait for it.

    Args:
        policy (`nn.Module`): the unwrapped policy.
        accelerator (`Accelerator`): the trainer's.
        processing_class: the tokenizer.
        base_url (`str`, *optional*): of the server; in place of `host` and `port`.
        host, port: of the server.
        timeout (`float`): seconds to wait for the server to come up.
        group_port (`int`): of the channel that the weights take.

    Raises:
        ImportError: vLLM is not installed.
        ConnectionError: no server answers; says which command starts one.
    """

    def __init__(
        self,
        policy: nn.Module,
        accelerator: Any,
        processing_class: Any,
        *,
        base_url: str | None = None,
        host: str = "0.0.0.0",
        port: int = 8000,
        timeout: float = 240.0,
        group_port: int = 51216,
    ) -> None:
        generation, client = vllm_classes()
        self.accelerator = accelerator
        self.base_url = base_url or f"http://{host}:{port}"
        options = {
            "mode": "server",
            "server_base_url": self.base_url,
            "server_timeout": timeout,
            "group_port": group_port,
            "is_fsdp_enabled": getattr(accelerator.state, "fsdp_plugin", None) is not None,
        }
        known = inspect.signature(generation.__init__).parameters
        try:
            # It opens the channel for the weights too, on the first process.
            self.weights = generation(
                policy,
                accelerator,
                processing_class=processing_class,
                **{name: value for name, value in options.items() if name in known},
            )
            self.client = (
                self.weights.vllm_client
                if accelerator.is_main_process
                else client(base_url=self.base_url, connection_timeout=timeout)
            )
        except OSError as error:  # what requests raises is no ConnectionError of Python's
            raise ConnectionError(
                f"generation_backend='vllm': no vLLM server answers at {self.base_url} within {timeout} s; "
                f"{SERVER_HINT}; or name another address with vllm_server_base_url"
            ) from error
        self._check_log_probs()

    def _check_log_probs(self) -> None:
        """Warns if the server says that its log-probabilities are not those that it samples with."""
        if not hasattr(self.client, "get_server_info"):
            return  # TRL of before 1.13
        mode = (self.client.get_server_info().get("model_config") or {}).get("logprobs_mode")
        if mode not in (None, "processed_logprobs"):
            warn_once(
                f"the vLLM server at {self.base_url} runs with --logprobs-mode {mode}: what it says of its samples is "
                "not what it sampled with, and the correction for the difference would be biased. Restart it with "
                "--logprobs-mode processed_logprobs, or set vllm_importance_sampling_correction=False"
            )

    @contextmanager
    def session(self, policy: nn.Module, sampling: Sampling) -> Iterator[Generate]:
        self.weights.sync_weights()
        self.accelerator.wait_for_everyone()  # nobody asks a server that has half of the weights
        yield lambda contexts: self._generate(contexts, sampling)

    def _generate(self, contexts: Sequence[Sequence[int]], sampling: Sampling) -> list[SampledIds]:
        answers: list[SampledIds] = []
        for start in range(0, len(contexts), sampling.batch_size):
            part = [list(context) for context in contexts[start : start + sampling.batch_size]]
            output = self.client.generate(
                prompts=part,
                n=1,
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                logprobs=0,
                # Only what ends a turn ends the sampling, as with every backend; vLLM's own end tokens do not.
                generation_kwargs={"stop_token_ids": list(sampling.stop_token_ids), "ignore_eos": True},
            )
            ids, log_probs = output["completion_ids"], output["logprobs"]
            if len(ids) != len(part) or log_probs is None:
                raise RuntimeError(
                    f"the vLLM server at {self.base_url} answered {len(ids)} of {len(part)} contexts"
                    f"{' without log-probabilities' if log_probs is None else ''}; its log says why. "
                    "generation_backend='transformers' does without it"
                )
            for row, of_row in zip(ids, log_probs, strict=True):
                end = next((i + 1 for i, token in enumerate(row) if token in sampling.stop_token_ids), len(row))
                answers.append(SampledIds(row[:end], [_of_sampled(value) for value in of_row[:end]]))
        return answers


def _of_sampled(value: Any) -> float:
    """A token's log-probability: TRL gives it bare, or as the only one of a list; `None` where it was not finite."""
    value = value[0] if isinstance(value, list | tuple) else value
    return float("nan") if value is None else float(value)
