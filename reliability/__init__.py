"""Proofs from outside: real servers are killed, crowded, fed nonsense and watched."""
