"""What a record means, for people: facts derived from it, and the sentences that say them. Pure.

record -> facts (episodes, forks, recovery, the forecast against what came) -> words -> terminal, report
"""

from controlplane.digest.words import summary

__all__ = ["summary"]
