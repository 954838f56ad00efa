"""Original and candidate side by side: taps, noise floor, verdict."""
