"""Known faults of ports, tried on the reference to find the cause of a difference."""
