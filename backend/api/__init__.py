"""What crosses the wire: routes by topic, request and answer models, error bodies."""
