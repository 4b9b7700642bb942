"""Rows: read, checked, split, changed, and made into token ids."""
