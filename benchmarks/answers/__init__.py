"""Measures indexes of documents: how fast they are, what they find, and what recommendations gain from them."""
