"""Texts: tokenization, redaction and constraints before the engine, offsets and answers after it."""
