"""Rollouts: generators, length control, the buffer with bounded staleness and the order of prompts."""
