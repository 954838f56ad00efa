"""Compare the converted text encoder with the original: taps, noise floor, verdict."""
