"""Benchmarks: load on servers (serving), speed and quality of training (training), and the statistics of claims."""
