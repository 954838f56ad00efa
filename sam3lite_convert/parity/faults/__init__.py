"""What ports get wrong, tried on the reference."""
