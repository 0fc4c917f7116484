"""The loop, the two ways to make a step, and what they are made of."""
