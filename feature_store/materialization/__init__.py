"""Compute and write: batch runs and pushed rows, into the online and offline stores."""
