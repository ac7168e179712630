"""What crosses between a trainer and the controller: documents, tunables, reports, metric names, the run directory.

Nothing of ours is imported here, and nothing heavier than pydantic and PyYAML: these modules are loaded inside other
people's trainers.
"""
