"""Fine-tune, quantize and serve models over gRPC on vLLM.

    checkpoint = tuneserve.finetune("train.yaml")
    smaller = tuneserve.quantize(checkpoint, "checkpoints/reviews-w8a8", "w8a8")
    print(smaller.metrics, tuneserve.evaluate(smaller).throughput)
    with tuneserve.Server({"reviews": smaller}) as server, server.client() as client:
        print(client.classify("reviews", "A lovely film.")[0].best)

All of this is in api.py, which is imported on first use. Clients of running servers are in `tuneserve.client`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuneserve.api import Checkpoint, Server, evaluate, finetune, quantize
else:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("finetune", "quantize"):  # packages that can be called (verbs.py)
            return import_module(f"{__name__}.{name}")
        if name in __all__:
            return getattr(import_module(f"{__name__}.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Checkpoint", "Server", "evaluate", "finetune", "quantize"]
__version__ = "0.1.0"
