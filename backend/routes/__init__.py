"""The routes: parse, one call, answer."""
