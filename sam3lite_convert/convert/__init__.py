"""Carries out a plan: writes tensors, config, receipt, model card and tokenizer, as a complete folder or not at all."""
