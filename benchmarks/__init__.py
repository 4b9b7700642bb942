"""Measures: load on servers (serving), how fast training is (training), and what both need to be claims."""
