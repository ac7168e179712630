"""A complete, thin ScaleRL trainer: prompts in, a better policy out, every step reported to its agent.

Only `controlplane.contract` and `controlplane.agent` are imported from the other half of the house.
"""
