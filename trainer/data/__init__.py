"""Data files: reading, writing, and preparing prompts for a run."""
