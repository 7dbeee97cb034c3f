"""What is said of networks and of finished runs: sizes, receptive fields, where they err, how sure that is."""
