"""From distances to what a person is told: anomaly map, image score, regions, leave-one-out scores."""
