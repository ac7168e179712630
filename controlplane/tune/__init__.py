"""Tuning a run while it goes on: Optuna proposes, paired arms measure, proof decides. See docs/tuning.md.

evidence.py  anytime-valid evidence on a growing difference     pairing.py   records of arms -> differences, prompt by prompt
judge.py     adopt, reject or inconclusive                       planner.py   what a probe costs and can detect       all four pure
"""
