"""Policies read back to people: what one says (explain), what changed between two (difference), their schema for editors."""

from controlplane.policytools.difference import Difference, difference
from controlplane.policytools.explain import explain
from controlplane.policytools.schema import schema

__all__ = ["Difference", "difference", "explain", "schema"]
