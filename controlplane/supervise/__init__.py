"""Keeps a trainer running: starts it again after a crash or for a rollback, within limits."""
