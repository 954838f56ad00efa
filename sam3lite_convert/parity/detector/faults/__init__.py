"""Known faults of ports of the detector, made in the reference one at a time."""
