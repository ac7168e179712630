"""Forecast of a reinforcement-learning run: where its pass rate will end, and whether it is worth going on.

Pure: points in, posterior, forecast and advice out; no I/O, no clock, no state outside the objects. `protocol` holds
the two published point fits that the forecaster is compared with.
"""

from controlplane.forecast.advice import Advice, Verdict
from controlplane.forecast.forecaster import Change, Forecaster
from controlplane.forecast.noise import Point
from controlplane.forecast.prior import Prior
from controlplane.forecast.result import Distribution, Forecast, Parameters

__all__ = ["Advice", "Change", "Distribution", "Forecast", "Forecaster", "Parameters", "Point", "Prior", "Verdict"]
