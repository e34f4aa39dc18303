"""What normal is: whitening, coreset, nearest neighbours."""
