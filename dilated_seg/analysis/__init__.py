"""Analysis of networks and finished runs: sizes, receptive fields, errors, confidence intervals."""
