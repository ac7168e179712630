"""What a policy would have done in a run that somebody recorded: when, why, and how far the run had come by then."""

from controlplane.hindsight.frames import Frame, of_table
from controlplane.hindsight.rehearse import Hindsight, fitted, rehearse

__all__ = ["Frame", "Hindsight", "fitted", "of_table", "rehearse"]
