"""Workloads that hurt people today, made up with a seed: the same seed and size give the same trace, to the byte.

Each is told in its own file: what happens, whom it hurts, and what it makes visible.
"""
