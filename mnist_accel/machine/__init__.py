"""Launchers, processes, and what this machine gives them."""
