"""Ports, connections, and what is around every call."""
