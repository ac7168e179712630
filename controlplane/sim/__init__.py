"""A simulated trainer: a made-up learner behind a real agent, for testing controllers in milliseconds. Nothing sleeps."""

from controlplane.sim.faults import Fault, lr_fault, nan, stall
from controlplane.sim.trainer import SimTrainer, Tempo

__all__ = ["Fault", "SimTrainer", "Tempo", "lr_fault", "nan", "stall"]
