"""What is read from finished runs; nothing here runs a network again."""
