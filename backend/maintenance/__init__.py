"""What looks after the models folder: verify, sweep, backup, restore."""
