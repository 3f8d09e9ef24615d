"""Who computes: one port, and the engines behind it."""
