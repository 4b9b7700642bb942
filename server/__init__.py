"""Serves checkpoints over gRPC on vLLM's continuous batching.

Imports go one way, from each room to those before it: engine, call, text, models, api, open_inference, transport, app.
Only `engine/` knows vLLM and torch.
"""
