"""A trained network as a file that other programs run, or as a directory for the Hugging Face Hub."""
