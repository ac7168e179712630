"""The agent: lives inside a trainer's process on rank 0, shows its metrics and applies what a controller asks for.

Imports the contract, the standard library, pydantic and prometheus_client, and nothing else.
"""

from controlplane.agent.agent import Agent
from controlplane.agent.boundary import BoundaryState, Directive
from controlplane.agent.guardrails import Bounds, GuardRails
from controlplane.agent.http import HttpMailbox
from controlplane.agent.mailbox import DirectoryMailbox, Mailbox, read_key
from controlplane.agent.ranks import MESSAGE_BYTES, Follower, Ranks

__all__ = [
    "MESSAGE_BYTES",
    "Agent",
    "BoundaryState",
    "Bounds",
    "Directive",
    "DirectoryMailbox",
    "Follower",
    "GuardRails",
    "HttpMailbox",
    "Mailbox",
    "Ranks",
    "read_key",
]
