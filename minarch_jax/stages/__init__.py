"""Stages: what is missing in a results directory is computed and written."""
