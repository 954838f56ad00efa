"""Carries out a plan: bytes, config, receipt, card, tokenizer; a whole folder or none."""
