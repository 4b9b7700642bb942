"""Monitors: what streams of texts are about, and in which tone, counted for alerts."""
