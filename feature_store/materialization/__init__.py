"""Compute and write: batch runs, pushed rows and events of a topic, into the online and offline stores."""
