"""ONNX Runtime behind MLServer: what `mlserver start` loads. Its outputs have the names of our server's.

MLServer's own runtime for Hugging Face models, 1.7.1, does not start with PyTorch 2.13.
"""

from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_classifier import Classifier


class Runtime(MLModel):  # type: ignore[misc]  # installed in the peer's environment alone
    """MLServer joins the texts of requests, and parts the answers."""

    async def load(self) -> bool:
        """Its settings name the checkpoint, and the model as an .onnx file."""
        extra = self.settings.parameters.extra
        self.classifier = Classifier(Path(extra["checkpoint"]), Path(extra["model"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Each text's best label and its probability."""
        answers = self.classifier.classify(StringCodec.decode_input(payload.inputs[0]))
        scores = np.array([one.score for one in answers], np.float32)
        outputs = [
            StringCodec.encode_output("label", [one.label for one in answers]),
            NumpyCodec.encode_output("score", scores),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
