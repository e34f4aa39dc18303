"""The screens of the engineer's page, one module each."""
