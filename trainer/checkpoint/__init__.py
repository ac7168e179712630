"""Checkpoints: written whole or not at all, and proven by what comes after them."""
