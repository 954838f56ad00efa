"""Run the original text encoder from the user's own clone of EfficientSAM3."""
