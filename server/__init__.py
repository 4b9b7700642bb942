"""Serves checkpoints over gRPC on vLLM's continuous batching.

Imports go one way: config, errors, metrics, engine interface <- tokenizer, engine, messages <- models <- services,
interceptors <- app. Only `engine/` knows vLLM; everything else runs without torch.
"""
