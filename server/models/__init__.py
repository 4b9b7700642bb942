"""Served models: their versions, queues, adapters and health, and who may change them."""
