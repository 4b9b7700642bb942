"""Writes a classifier for ONNX Runtime: OUTPUT/fp32.onnx, and OUTPUT/int8.onnx with dynamic activations.

python onnx_export.py CHECKPOINT OUTPUT
"""

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(checkpoint: Path, output: Path) -> None:
    """Each dimension of the inputs may vary. The graph of eager attention has fewer nodes than that of SDPA's."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    texts = ["Not bad.", "Great value, arrived on time."]
    inputs = AutoTokenizer.from_pretrained(checkpoint)(texts, padding=True, return_tensors="pt")
    any_size = dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)
    fp32 = output / "fp32.onnx"
    output.mkdir()
    torch.onnx.export(
        model.eval(),
        kwargs=dict(inputs),
        f=fp32,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(inputs, any_size),
        dynamo=True,
        external_data=False,
    )
    # Without VNNI the products of 8 bits saturate, so weights have 7 there.
    vnni = "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    quantize_dynamic(fp32, output / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8, reduce_range=not vnni)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
