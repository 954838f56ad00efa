"""Convert SAM3-LiteText checkpoints to safetensors, and prove the result."""

__version__ = "0.1.0"
