"""The live view of a run in a terminal, and its plain form for logs."""

from controlplane.view.terminal import render, watch

__all__ = ["render", "watch"]
