"""Image files to pixels, pixels to the network's input and back."""
