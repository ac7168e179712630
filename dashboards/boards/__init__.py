"""The dashboards, from general to particular."""

from collections.abc import Callable

from dashboards.boards.compare import compare
from dashboards.boards.controller import controller
from dashboards.boards.learning import learning
from dashboards.boards.overview import overview
from dashboards.boards.rollouts import rollouts
from dashboards.boards.stages import stages
from dashboards.boards.system import system
from dashboards.frame import Board
from dashboards.thresholds import Limits

BOARDS: tuple[Callable[[Limits], Board], ...] = (overview, learning, rollouts, system, controller, compare, stages)
"""One function each, from the limits of a policy to the dashboard."""
