"""A request becomes a run that is trained and written down."""
