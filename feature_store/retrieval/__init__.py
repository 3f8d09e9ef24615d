"""Read back: historical (as of then) and online (as of now)."""
