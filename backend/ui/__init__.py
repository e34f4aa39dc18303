"""The engineer's page at ``/ui``: a client of the public HTTP interface, rendered on the server."""
