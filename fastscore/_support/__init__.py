"""What everyone stands on: checks, buffers, files, memory. It imports nothing of this package."""
