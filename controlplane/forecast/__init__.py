"""Forecast of a reinforcement-learning run: where its pass rate will end, and whether it is worth going on.

Pure: points in, posterior, forecast and advice out; no I/O, no clock, no state outside the objects. `methods` holds
the point fits that the forecaster is compared with, `backtest` the comparison.
"""

from controlplane.forecast.advice import Advice, Verdict
from controlplane.forecast.economics import Economics
from controlplane.forecast.forecaster import Change, Forecaster
from controlplane.forecast.methods import METHODS, Method
from controlplane.forecast.noise import Point
from controlplane.forecast.prior import Prior
from controlplane.forecast.result import Distribution, Forecast, Parameters

__all__ = [
    "METHODS",
    "Advice",
    "Change",
    "Distribution",
    "Economics",
    "Forecast",
    "Forecaster",
    "Method",
    "Parameters",
    "Point",
    "Prior",
    "Verdict",
]
