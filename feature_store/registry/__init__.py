"""Named, versioned records of a project: its definitions as text, and how far materialization got."""
