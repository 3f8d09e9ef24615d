"""Work that is done by the clock: the schedules of views."""
