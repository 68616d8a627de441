"""Models that reducers stand in, and the loading of their weights."""
