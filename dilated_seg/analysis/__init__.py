"""What is said of networks and of finished runs: sizes, receptive fields, the comparison."""
