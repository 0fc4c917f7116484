"""Traces a few steps of a run, and turns a trace into phases, layers and a verdict: where the time goes."""
