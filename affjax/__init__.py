"""Facial affect in JAX."""
