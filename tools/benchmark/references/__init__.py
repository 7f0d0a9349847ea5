"""Plain ways to do the same work, written out for comparison."""
