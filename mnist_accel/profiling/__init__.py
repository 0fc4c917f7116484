"""Where the time goes: a few steps of a run are traced, and a trace is turned into phases, layers and a verdict."""
