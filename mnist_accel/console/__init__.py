"""What is printed, and what a terminal shows: the only folder that imports rich."""
