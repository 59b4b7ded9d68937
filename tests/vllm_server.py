"""A local stand-in for a vLLM server: the endpoints that TRL's client asks, answered by a model of its own.

Only the transfer of weights is replaced (vLLM sends them over NCCL, between GPUs): the client announces them as it
does to the real server, and what it would broadcast is handed over here.
"""

import importlib
import json
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class VLLMServer:
    """Samples with its own copy of the policy, which knows only what it was sent.

    Args:
        model (`nn.Module`): of the policy's architecture, with other weights.
        rounding (`torch.dtype`, *optional*): of its logits, as another engine's arithmetic would.
    """

    def __init__(self, model: Any, rounding: torch.dtype | None = None) -> None:
        self.model, self.rounding = model.eval(), rounding
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.announced: list[tuple[str, str, list[int]]] = []
        self.updates = 0
        self.answer_fewer = False
        self.fail = False
        self.logprobs_mode = "processed_logprobs"
        self.generator = torch.Generator().manual_seed(0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def reply(self, body: Any, status: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                server.paths.append(self.path)
                config = {"model_config": {"logprobs_mode": server.logprobs_mode}}
                self.reply({"data": [{"id": "policy"}], "world_size": 1, "vllm_config": config})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                server.paths.append(self.path)
                if self.path == "/v1/completions":
                    if server.fail:
                        self.reply({"error": "out of memory"}, 400)
                    else:
                        self.reply({"choices": server.complete(body)})
                    return
                if self.path == "/update_weights":
                    info = body["update_info"]
                    server.announced = list(zip(info["names"], info["dtype_names"], info["shapes"], strict=True))
                self.reply({"success": True})

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.requests.append(body)
        prompts = body["prompt"][:-1] if self.answer_fewer else body["prompt"]
        choices = []
        for prompt in prompts:
            ids, log_probs = list(prompt), []
            while len(log_probs) < body["max_tokens"]:
                logits = self.model(torch.tensor([ids])).logits[0, -1]
                logits = logits if self.rounding is None else logits.to(self.rounding).float()
                distribution = (logits / max(body["temperature"], 1e-6)).log_softmax(-1)
                token = int(torch.multinomial(distribution.exp(), 1, generator=self.generator))
                ids.append(token)
                log_probs.append(float(distribution[token]))
                if token in body["stop_token_ids"]:
                    break
            sampled = [f"token_id:{token}" for token in ids[len(prompt) :]]
            logprobs = {"tokens": sampled, "token_logprobs": log_probs, "top_logprobs": [None] * len(sampled)}
            choices.append({"prompt_token_ids": prompt, "token_ids": ids[len(prompt) :], "logprobs": logprobs})
        return choices

    def receive(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """What NCCL would bring; must be what was announced, and all that the model has."""
        own = dict(self.model.named_parameters())
        received = [(name, weight.detach().clone()) for name, weight in named_parameters]
        assert {name for name, _ in received} == set(own)
        for name, weight in received:
            own[name].data.copy_(weight)
        self.received = [(name, str(w.dtype).removeprefix("torch."), list(w.shape)) for name, w in received]
        self.updates += 1


def serve(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **options: Any) -> Iterator[VLLMServer]:
    """A server, and a TRL that believes vLLM to be installed; its transfer of weights ends here."""
    from trl.generation import vllm_client, vllm_generation

    server = VLLMServer(model, **options)
    for module in (importlib.import_module("trl.import_utils"), vllm_client, vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)

    def send(iterator: Any, *args: Any, **kwargs: Any) -> None:
        server.receive(iterator)

    engine = SimpleNamespace(trainer_send_weights=send)
    monkeypatch.setattr(vllm_client, "packed_nccl_broadcast_producer", send, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", engine, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", lambda **kwargs: None, raising=False)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device=0: None)
    yield server
    server.close()
