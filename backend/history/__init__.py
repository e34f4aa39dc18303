"""What was decided: a bounded history of decisions, quantiles over time, and whether scores have moved."""
