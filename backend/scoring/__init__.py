"""From distances to a decision: anomaly map, image score, regions, leave-one-out scores."""
