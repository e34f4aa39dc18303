"""Who may call, how much and how long: keys, limits, time, shutdown, logs, metrics."""
