"""The same run on many processes and machines. Ray is imported here and nowhere else.

docs/cluster.md has the picture and the table of what may fail.
"""


class CannotStart(RuntimeError):
    """What was given does not make a run; starting it again would do the same. One sentence."""


class ClusterFailure(RuntimeError):
    """The run cannot go on with the processes that can be had; its newest checkpoint stands. One sentence."""
