"""Served models: their versions, queues, adapters and health, and what administrators may change."""
