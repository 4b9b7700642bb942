"""ONNX Runtime behind LitServe, which batches requests. It answers /classify as `vllm serve` does.

python onnx_litserve.py CHECKPOINT MODEL.onnx PORT
"""

import sys
from pathlib import Path
from typing import Any

import litserve
from onnx_classifier import BATCH, Answer, Classifier

_WAIT_SECONDS = 0.005


class Api(litserve.LitAPI):  # type: ignore[misc]  # installed in the peer's environment alone
    """Requests of several texts each, as many of them at once as LitServe joins."""

    def __init__(self, checkpoint: Path, model: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=_WAIT_SECONDS, api_path="/classify")
        self.checkpoint, self.model = checkpoint, model

    def setup(self, device: str) -> None:
        """Loads the model in LitServe's worker."""
        self.classifier = Classifier(self.checkpoint, self.model)

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts of a request."""
        return list(request["input"])

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        """`predict` joins the texts of requests."""
        return inputs

    def predict(self, requests: list[list[str]]) -> list[list[Answer]]:
        """The answers of each request."""
        answers = iter(self.classifier.classify([text for request in requests for text in request]))
        return [[next(answers) for _ in request] for request in requests]

    def unbatch(self, outputs: list[list[Answer]]) -> list[list[Answer]]:
        """`predict` has parted them."""
        return outputs

    def encode_response(self, output: list[Answer]) -> dict[str, Any]:
        """As `vllm serve`."""
        return {
            "data": [{"label": one.label, "score": one.score} for one in output],
            "usage": {"prompt_tokens": sum(one.tokens for one in output)},
        }


if __name__ == "__main__":
    api = Api(Path(sys.argv[1]), Path(sys.argv[2]))
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="warning")
