"""Serves checkpoints over gRPC on vLLM's continuous batching.

Imports go one way: config, errors, metrics, seam <- tokenizer, engine, convert <- models <- services, interceptors
<- app. Only `engine.py` knows vLLM; everything else runs without torch.
"""
