"""What can be computed: scalars, SQL and mergeable aggregates. Pure: no driver is imported here."""
